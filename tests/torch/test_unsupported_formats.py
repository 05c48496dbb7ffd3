"""What `load_state_dict` refuses: files of other kinds, each in its own sentence, and tensors beyond their memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from weightcache.errors import LoadError, StorageError
from weightcache.torch import load_state_dict

torch = pytest.importorskip("torch")

from forgery import save  # noqa: E402 (it imports torch)


def refusal(path: Path) -> LoadError:
    with pytest.raises(LoadError) as caught:
        load_state_dict(path)
    assert caught.value.source == str(path)
    assert caught.value.hint
    return caught.value


def follow(hint: str) -> None:
    exec("\n".join(re.findall("`([^`]+)`", hint)), {})


# ---- files of other kinds


@pytest.mark.parametrize(
    ("content", "says", "do"),
    [
        (b"", "is empty", "download it again"),
        (b"<!DOCTYPE html><html>", "is an HTML page", "wrong or expired URL"),
        (b"\n  <html lang='en'>", "is an HTML page", "wrong or expired URL"),
        (b'<?xml version="1.0"?><Error>', "is an XML document", "wrong or expired URL"),
        (b'{"error": "not found"}', "is a JSON document", "wrong or expired URL"),
        (b'{"data":{"message": "not found"}}', "is a JSON document", "wrong or expired URL"),
        (
            b'{"metadata": {}, "weight_map": {"a": "b"}}',
            "is the index of a sharded model",
            "load the directory",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer", "git lfs pull"),
        (pickle.dumps({"a": 1}, protocol=4), "is a pickle, but not from torch", "torch.save"),
        (b"GGUF\3\0\0\0", "is a GGUF file", ".safetensors"),
        (b"tjgg\1\0\0\0", "is a GGML file", ".safetensors"),
        (b"\x08\x08\x12\x07pytorch\x1a\x06", "is an ONNX model", "onnxruntime"),
        (b"\x08\x07\x3a\xc3", "is an ONNX model", "onnxruntime"),
        (b"\x08\x01\x12\xb0", "is a TensorFlow SavedModel", ".safetensors"),
        (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model", ".safetensors"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", ".safetensors"),
        (b"\x93NUMPY\1\0", "is a numpy file", "numpy.load"),
        (b"\x1f\x8b\x08", "is compressed with gzip", "decompress"),
        (b"\xfd7zXZ\0", "is compressed with xz", "decompress"),
        (b"BZh91AY", "is compressed with bzip2", "decompress"),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "decompress"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack"),
        (b"Rar!\x1a\7", "is a RAR archive", "unpack"),
        (b"PK\5\6" + bytes(18), "is an empty zip file", "download it again"),
        (b"hello", "begins with b'hello'", "torch.save or safetensors"),
    ],
)
def test_each_other_kind_of_file_has_its_own_sentence(tmp_path: Path, content: bytes, says: str, do: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    error = refusal(path)
    assert says in error.problems[0]
    assert do in error.hint


@pytest.mark.parametrize(
    ("records", "says", "do"),
    [
        ({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/a.py": b""}, "TorchScript", "torch.jit.load"),
        ({"m/code/a.py": b"", "m/model.json": b"{}"}, "TorchScript", "torch.jit.load"),
        ({"m/bytecode.pkl": b"", "m/data.pkl": b""}, "TorchScript", "torch.jit.load"),
        ({"m/.data/extern_modules": b""}, "torch.package", ".safetensors"),
        ({"m/archive_format": b"pt2"}, "torch.export", "torch.export.load"),
        ({"a.npy": b"", "b.npy": b""}, "numpy arrays (.npz)", "numpy.load"),
        ({"config.json": b"", "model.weights.h5": b""}, "Keras", ".safetensors"),
        ({"m/model.pth": b"", "m/README": b""}, "is a zip file that contains 'm/model.pth'", "unpack it first"),
        ({"m/version": b"3", "m/data/0": b""}, "has no data.pkl", "torch.save"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_each_other_kind_of_zip_file_has_its_own_sentence(
    tmp_path: Path, records: dict[str, bytes], says: str, do: str, compression: int
) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data or bytes(100))
    error = refusal(path)
    assert says in error.problems[0]
    assert do in error.hint


def test_the_weights_of_a_real_torchscript_archive_are_saved_as_its_hint_says(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        follow(refusal(path).hint)
    assert load_state_dict(tmp_path / "model.converted.pt")["weight"].shape == (3, 2)


def old_tar(path: Path) -> Path:
    """A file as torch.save wrote it before 0.1.10: one tensor of three numbers in one storage of four."""
    storage = struct.pack("<q4f", 4, 1.0, 2.0, 3.0, 4.0)
    tensor = struct.pack("<i4xqqq", 1, 3, 1, 1)  # dimensions, size, stride, offset
    members = {
        "sys_info": pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2),
        "storages": pickle.dumps(1, 2)
        + pickle.dumps((7, "cpu", torch.FloatStorage), 2)
        + storage
        + pickle.dumps([], 2),
        "tensors": pickle.dumps(1, 2) + pickle.dumps((8, 7, torch.FloatTensor), 2) + tensor,
        "pickle": b"\x80\x02}X\x01\x00\x00\x00wU\x018Qs.",
    }
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_file_of_the_oldest_pytorch_is_converted_as_its_hint_says(tmp_path: Path) -> None:
    path = old_tar(tmp_path / "resnet.pth")
    error = refusal(path)
    assert "is a tar file from PyTorch before 0.1.10" in error.problems[0]
    assert "runs any code in the file" in error.hint
    follow(error.hint)
    assert load_state_dict(tmp_path / "resnet.converted.pt")["w"].tolist() == [2.0, 3.0, 4.0]


def test_other_tar_files_and_those_cut_off_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "model_weights.ckpt").write_bytes(b"x" * 2000)
    with tarfile.open(tmp_path / "model.nemo", "w") as tar:
        tar.add(tmp_path / "model_weights.ckpt", "model_weights.ckpt")
    error = refusal(tmp_path / "model.nemo")
    assert "is a tar file that contains 'model_weights.ckpt'" in error.problems[0]
    assert "unpack it first" in error.hint
    whole = old_tar(tmp_path / "old.pth").read_bytes()
    for size in (100, 300, 512, 700, 2000):
        (tmp_path / "old.pth").write_bytes(whole[:size])
        assert "is a tar file from PyTorch before 0.1.10" in refusal(tmp_path / "old.pth").problems[0]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("protocol", "legacy"), [(4, False), (5, False), (1, True), (4, True), (5, True)])
def test_another_pickle_protocol_is_named_and_converted_as_the_hint_says(
    tmp_path: Path, protocol: int, legacy: bool
) -> None:
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3)}, legacy=legacy, pickle_protocol=protocol)
    error = refusal(path)
    assert f"uses pickle protocol {protocol}" in error.problems[0]
    assert "default pickle_protocol" in error.hint
    follow(error.hint)
    assert load_state_dict(tmp_path / "weights.converted.pt")["a"].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_protocol_3_is_loaded(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3)}, legacy=legacy, pickle_protocol=3)
    assert load_state_dict(path)["a"].tolist() == [1, 1, 1]


def test_a_plain_pickle_is_converted_as_its_hint_says(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    with path.open("wb") as file:
        pickle.dump({"a": 1}, file)
    with pytest.warns(ResourceWarning):  # one line, that leaves the file to be closed
        follow(refusal(path).hint)
    assert load_state_dict(tmp_path / "weights.converted.pt") == {"a": 1}


def test_a_safetensors_header_above_the_limit_of_the_format_is_not_called_damage(tmp_path: Path) -> None:
    """In a file with a hole, which takes no disk."""
    path, length = tmp_path / "weights.safetensors", 100_000_001
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b'{"__metadata__":')
        file.truncate(8 + length + 100)
    error = refusal(path)
    assert "the limit of the format is 100000000" in error.problems[0]
    assert "several files" in error.hint
    os.truncate(path, 1000)
    assert "download it again" in refusal(path).hint


@pytest.mark.parametrize(
    ("names", "do"),
    [
        ([], "use the path of a file"),
        (["config.json", "model.pt"], "use one of the files in it: model.pt"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch_save"),
        (["data.pkl", "version"], "unpacked file of torch.save"),
    ],
)
def test_a_directory_says_what_to_give_instead(tmp_path: Path, names: list[str], do: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(StorageError, match="it is a directory") as caught:
        load_state_dict(folder)
    assert do in caught.value.hint


def test_a_zip_file_cut_off_says_where(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pt", {"a": torch.ones(3)})
    os.truncate(path, path.stat().st_size - 30)
    assert "is truncated to" in refusal(path).problems[0]


def test_the_index_of_a_real_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model-00001.safetensors"}}, indent=2)
    )
    assert "is the index of a sharded model" in refusal(path).problems[0]
