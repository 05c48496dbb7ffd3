"""Errors for files in formats that are not supported: each names the format and what to do."""

from __future__ import annotations

import os
import re
import tarfile
from typing import TYPE_CHECKING

from weightcache._message_text import listed, printable_line
from weightcache._store.content_sniffing import foreign_content
from weightcache.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

DOWNLOAD_AGAIN = "the file is damaged or incomplete: download it again, or save it again with torch.save"

_FROM_PAGE = "it was downloaded from a wrong or expired URL: download it again from its source"
_NOT_A_MODEL = {
    "an empty file": ("is empty", DOWNLOAD_AGAIN),
    "a Git LFS pointer": ("is a Git LFS pointer", "download the real file (`git lfs pull`)"),
}
_UNPACK = "decompress it first"
_SAFETENSORS = "get the model as .safetensors, or convert it"
_MAGIC = (
    (0, b"\x1f\x8b", "is compressed with gzip", _UNPACK),
    (0, b"\xfd7zXZ", "is compressed with xz", _UNPACK),
    (0, b"BZh", "is compressed with bzip2", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf", "is a 7z archive", "unpack it first"),
    (0, b"Rar!", "is a RAR archive", "unpack it first"),
    (0, b"PK\x05\x06", "is an empty zip file", DOWNLOAD_AGAIN),
    (0, b"PK\x07\x08", "is one part of a split zip file", "join and unpack the parts first"),
    (0, b"GGUF", "is a GGUF file, which llama.cpp reads", _SAFETENSORS),
    (0, b"lmgg", "is a GGML file, which llama.cpp reads", _SAFETENSORS),
    (0, b"tjgg", "is a GGML file, which llama.cpp reads", _SAFETENSORS),
    (0, b"\x89HDF", "is an HDF5 file, as Keras writes it", _SAFETENSORS),
    (0, b"\x93NUMPY", "is a numpy file (.npy)", "read it with numpy.load, and save its array with torch.save"),
    (0, b"PAR1", "is a Parquet file", _SAFETENSORS),
    (0, b"SQLite format 3", "is an SQLite database", _SAFETENSORS),
    (4, b"TFL3", "is a TensorFlow Lite model", _SAFETENSORS),
    (0, b"\x08\x01\x12", "is a TensorFlow SavedModel", _SAFETENSORS),
)
# A protobuf message: the version of the format, then the name of the program that wrote it, the graph or the operators.
_ONNX = re.compile(rb"\x08[\x02-\x20][\x12\x1a\x22\x3a\x42]")
# A file of torch.save before version 1.6 starts with the integer 0x1950a86a20f9469cfc6c, in any pickle protocol.
_OLD_PICKLE = re.compile(rb"\x80(.)(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19|L119547037146038801333356L", re.DOTALL)
_TAR_OF_TORCH = ("sys_info", "pickle", "storages", "tensors")


def legacy_protocol(head: bytes) -> int | None:
    """Return the pickle protocol of a file from torch.save before version 1.6, or None for another file."""
    found = _OLD_PICKLE.match(head)
    return found and (found[1] or b"\1")[0]  # the text protocols 0 and 1 do not state their number


def protocol_error(path: str, protocol: int, detail: str = "") -> LoadError:
    """Return the error for a pickle protocol that PyTorch does not read with ``weights_only=True``."""
    problem = f"uses pickle protocol {protocol}, but only protocol 2 is supported{detail}"
    return LoadError(
        path, [problem], hint=f"save it again with torch.save and the default pickle_protocol. {_conversion_hint(path)}"
    )


def unsupported_file(descriptor: int, head: bytes, path: str) -> LoadError:
    """Return the error for a file whose format is not supported.

    Args:
        descriptor: The open file.
        head: Its first bytes, up to 1 KiB.
        path: Its path, for the message.
    """
    if foreign := foreign_content(head, name=""):
        if foreign == "a JSON document" and b'"weight_map"' in head:
            return LoadError(path, ["is the index of a sharded model"], hint="load the directory that it is in")
        what, hint = _NOT_A_MODEL.get(foreign, (f"is {foreign}, not weights", _FROM_PAGE))
        return LoadError(path, [what], hint=hint)
    if (names := _tar_names(descriptor, head)) is not None:
        return _tar_error(path, names)
    for at, magic, what, hint in _MAGIC:
        if head.startswith(magic, at):
            return LoadError(path, [what], hint=hint)
    if _ONNX.match(head):
        hint = "run it with onnxruntime, or get the model as .safetensors"
        return LoadError(path, ["is an ONNX model, which is a program, not weights"], hint=hint)
    if head.startswith(b"\x80"):
        hint = f"save the weights with torch.save or safetensors. {_conversion_hint(path, pickled=True)}"
        return LoadError(path, ["is a pickle, but not from torch.save"], hint=hint)
    problem = f"begins with {head[:8]!r}: not a zip file, not a legacy file of torch.save, and not safetensors"
    return LoadError(path, [problem], hint="use a file that torch.save or safetensors wrote")


def unsupported_zip(names: Sequence[str], path: str) -> LoadError | None:
    """Return the error for a zip file with the records ``names``, or None if its format is that of torch.save."""
    top = names[0].partition("/")[0] if names else ""
    within = {name.removeprefix(f"{top}/") for name in names}
    if within & {"constants.pkl", "bytecode.pkl"} or any(name.startswith("code/") for name in within):
        hint = (
            "if you trust its source, save only its weights: `import torch` and "
            f"`torch.save(torch.jit.load({path!r}, map_location='cpu').state_dict(), {_new_name(path)!r})`"
        )
        return LoadError(path, ["is a TorchScript archive, which is a program, not weights"], hint=hint)
    if f"{top}/data.pkl" in names:
        return None
    packed = [name for name in names if name.lower().endswith((".pt", ".pth", ".bin", ".ckpt", ".safetensors"))]
    if any(name.endswith(".npy") for name in names):
        found = ("contains numpy arrays (.npz)", "read them with numpy.load, and save them with torch.save")
    elif ".data/extern_modules" in within:
        found = ("is a torch.package archive, which is a program, not weights", _SAFETENSORS)
    elif "archive_format" in within or any("exported_program" in name for name in within):
        hint = "load it with torch.export.load, and save its state_dict with torch.save"
        found = ("is a torch.export archive, which is a program, not weights", hint)
    elif any(name.endswith(".weights.h5") for name in names):
        found = ("is a Keras model", _SAFETENSORS)
    elif packed:
        found = (f"is a zip file that contains {packed[0]!r}", "unpack it first, and load the files in it")
    else:
        found = ("", "save the weights with torch.save; other zip programs do not write its format")
    return LoadError(path, [found[0] or "is a zip file, but not from torch.save: it has no data.pkl"], hint=found[1])


def directory_hint(path: str) -> str:
    """Return which file of the directory ``path`` to use instead."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        names = []
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return "it is a distributed checkpoint: torch.distributed.checkpoint.format_utils.dcp_to_torch_save converts it"
    if "data.pkl" in names:
        return "it is an unpacked file of torch.save: use the original file"
    weights = [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))]
    return (
        f"use one of the files in it: {listed([*map(printable_line, weights)], 5)}"
        if weights
        else "use the path of a file"
    )


def _conversion_hint(path: str, *, pickled: bool = False) -> str:
    """Return how to convert a file that only an unrestricted load reads, with the risk of that."""
    load = f"torch.load({path!r}, map_location='cpu', weights_only=False)"
    imports = "import torch"
    if pickled:
        imports, load = "import pickle, torch", f"pickle.load(open({path!r}, 'rb'))"
    return (
        "If you trust its source, convert it once, on an isolated machine; this runs any code in the file: "
        f"`{imports}` and `torch.save({load}, {_new_name(path)!r})`"
    )


def _new_name(path: str) -> str:
    return f"{os.path.splitext(path)[0]}.converted.pt"


def _tar_names(descriptor: int, head: bytes) -> list[str] | None:
    """Return the first names in a tar file, or None for another file."""
    first = head[:100].partition(b"\0")[0].decode(errors="replace")
    if not head.startswith(b"ustar", 257) and first not in _TAR_OF_TORCH:
        return None
    names = [first]
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            names += [member.name for member, _ in zip(tar, range(100), strict=False)]
    except (tarfile.TarError, OSError, ValueError):
        pass  # truncated, or no tar file: only the first name is known
    return names


def _tar_error(path: str, names: list[str]) -> LoadError:
    if set(_TAR_OF_TORCH) & set(names):
        return LoadError(path, ["is a tar file from PyTorch before 0.1.10"], hint=_conversion_hint(path))
    packed = [name for name in names if name.endswith((".pt", ".pth", ".bin", ".ckpt", ".safetensors"))]
    what = f" that contains {packed[0]!r}" if packed else ""
    return LoadError(path, [f"is a tar file{what}"], hint="unpack it first, and load the files in it")
