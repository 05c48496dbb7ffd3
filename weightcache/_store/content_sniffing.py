"""What a server sent instead of weights, recognised by its first bytes and its Content-Type.

Hosts answer 200 with a login page, a JSON error or a Git LFS pointer where a file was wanted. A digest says that such
bytes are wrong; this module says what they are.
"""

from __future__ import annotations

import re

HEAD = 1024  # bytes of a file that `foreign_content` needs at most

POINTER = "a Git LFS pointer"
EMPTY = "an empty file"

# The second one is what Git LFS was called before 1.0; its specification lets readers take both.
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_TEXT_TYPES = {"html": "html", "xhtml+xml": "html", "xml": "xml", "json": "json"}
_WORDS = {"html": "an HTML page", "xml": "an XML document", "json": "a JSON document"}
_PROSE = (".md", ".mdx", ".markdown", ".rst", ".txt", ".jinja")  # may begin with a tag or a bracket
_HTML = (".html", ".htm", ".xhtml")
# A file with one of these endings may be such a document.
_ENDINGS = {
    "html": _HTML,
    "xml": (".xml", ".svg", ".plist", ".urdf", ".dae", ".rdf", *_HTML, *_PROSE),
    "json": (".json", ".jsonl", ".ndjson", ".ipynb", ".geojson", ".gltf", ".map", ".js", ".yaml", ".yml", *_PROSE),
}
# Of these the Content-Type says nothing: many hosts call every text a page.
_TEXTS = (*_ENDINGS["xml"], *_ENDINGS["json"], ".py", ".csv", ".tsv", ".toml", ".cfg", ".ini", ".sh", ".css", ".bib")
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".keras", ".msgpack"),
    *(".pb", ".tflite", ".npz", ".npy", ".pkl", ".pickle", ".joblib", ".model", ".mlmodel", ".ot", ".pdparams"),
    *(".params", ".nemo", ".engine", ".plan", ".weights", ".caffemodel", ".t7", ".jit", ".ptl", ".pte"),
    *(".tar", ".tgz", ".gz", ".zst", ".zip"),
)


_CODE = (
    *(".py", ".pyc", ".ipynb", ".sh", ".so", ".dll", ".dylib"),
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"),  # pickles, or archives of them
)


def foreign_content(head: bytes, content_type: str = "", *, name: str) -> str:
    """Say what came instead of weights, as in "an HTML page" or "a Git LFS pointer"; empty if it may be weights.

    Args:
        head: The first bytes of the file, up to `HEAD`; all of it if it is shorter.
        content_type: The Content-Type header of the response, if any. It counts only where the bytes do not speak
            against it: many hosts call everything ``text/html``.
        name: Path or name of the wanted file. ``config.json`` may be a JSON document, and ``LICENSE`` may be any text.
    """
    if not head:
        return EMPTY
    if head.startswith(_POINTERS):
        return POINTER
    name = name.lower()
    kind = _kind(head) or ("" if name.endswith(_TEXTS) else _declared_kind(head, content_type))
    if not kind or name.endswith(_ENDINGS[kind]):
        return ""
    return _WORDS[kind]


def holds_weights(name: str) -> bool:
    """Whether a file of this name is one of weights or an archive, by its ending."""
    return name.lower().endswith(_WEIGHTS)


def runs_code(name: str) -> bool:
    """Whether a program that loads a file of this name may run code in it: Python, a library, or a pickle."""
    return name.lower().endswith(_CODE)


def lfs_pointer_target(head: bytes) -> str:
    """Return the sha256 of the file that a Git LFS pointer stands for; empty if it names no sha256."""
    match = re.search(rb"\noid sha256:([0-9a-f]{64})\s", head)
    return match[1].decode() if match else ""


def _kind(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:HEAD].lower()
    prolog = text.startswith((b"<!", b"<?"))
    if re.match(rb"<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]", text) or (prolog and b"<html" in text):
        return "html"
    if text.startswith((b"<?xml", b"<!--")) or (_is_text(head) and re.match(rb"<[a-z][a-z0-9:_-]*(\s[^<>]*)?>", text)):
        return "xml"
    # `{"` also begins a .safetensors header, but only after its 8 bytes of length.
    if re.match(rb'\{\s*("|\}|$)|\[\s*(["{\]]|$)', text) and _is_text(head):
        return "json"
    return ""


def _declared_kind(head: bytes, content_type: str) -> str:
    subtype = content_type.partition(";")[0].strip().lower().rpartition("/")[2]
    known = _TEXT_TYPES.get(subtype) or _TEXT_TYPES.get(subtype.rpartition("+")[2], "")  # application/hal+json
    return known if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    return not any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)
