"""`foreign_content` names what hosts send instead of weights, and never accuses weights."""

from __future__ import annotations

import json
import random
import struct

import pytest

from weightcache._store.content_sniffing import foreign_content, holds_weights, runs_code


@pytest.mark.parametrize(
    ("head", "content_type", "name", "expected"),
    [
        (b"", "", "w.pt", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "text/plain", "w.pt", "a Git LFS pointer"),
        (b"version https://hawser.github.com/spec/v1\noid sha256:aa\n", "", "w.pt", "a Git LFS pointer"),
        (b"<!-- saved -->" + b" " * 300 + b"<html>", "", "w.pt", "an HTML page"),
        (b"<!-- a comment --><net/>", "", "w.pt", "an XML document"),
        (b"nothing here", "application/hal+json", "w.pt", "a JSON document"),
        (b"nothing here", "application/problem+json; charset=utf-8", "w.pt", "a JSON document"),
        (b"[PAD]\n[UNK]", "text/html", "vocab.txt", ""),
        (b"<p align=center>", "text/plain", "README.md", ""),
        (b"<!DOCTYPE html><html>", "text/html", "README.md", "an HTML page"),
        (b"<!DOCTYPE html><html>", "", "w.pt", "an HTML page"),
        (b"\xef\xbb\xbf\n <HTML lang=en>", "application/octet-stream", "w.pt", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "", "w.pt", "an XML document"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "application/xml", "w.pt", "an XML document"),
        (b'{"error": "Repository not found"}', "", "w.safetensors", "a JSON document"),
        (b'[{"id": 1}]', "application/json; charset=utf-8", "w.pt", "a JSON document"),
        (b"Please log in", "text/html; charset=utf-8", "w.pt", "an HTML page"),
        (b'{"model_type": "bert"}', "application/json", "config.json", ""),
        (b"<html></html>", "text/html", "page.html", ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "image/svg+xml", "logo.svg", ""),
        (b"PK\x03\x04" + bytes(100), "text/html", "w.pt", ""),  # many hosts call everything a page
        (b"Apache License", "text/plain", "LICENSE", ""),
    ],
)
def test_what_came_is_named(head: bytes, content_type: str, name: str, expected: str) -> None:
    assert foreign_content(head, content_type, name=name) == expected


def test_no_format_of_weights_is_taken_for_something_else() -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    starts = {
        "safetensors": struct.pack("<Q", len(header)) + header,
        "zip": b"PK\x03\x04",
        "pickle 2": b"\x80\x02}q\x00.",
        "pickle 4": b"\x80\x04\x95",
        "pickle 0": b"(dp0\nS'w'\np1\n",
        "gguf": b"GGUF\x03\x00\x00\x00",
        "onnx": b"\x08\x07\x12\x07pytorch",
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "numpy": b"\x93NUMPY\x01\x00",
        "tar": b"sys_info" + bytes(500),
        "noise": random.Random(1).randbytes(1024),
    }
    for kind, head in starts.items():
        assert foreign_content(head, "text/html", name="w.bin") in ("", "an HTML page"), kind
        assert foreign_content(head, "application/octet-stream", name="w.bin") == "", kind


WEIGHTS = "safetensors bin pt pth ckpt gguf ggml onnx h5 hdf5 keras msgpack pb tflite npz npy pkl pickle joblib model"
WEIGHTS += " mlmodel ot pdparams params nemo engine plan weights caffemodel t7 jit ptl pte tar tgz gz zst zip"
CODE = "py pyc ipynb sh so dll dylib bin pt pth ckpt pkl pickle joblib dill"
JSON = "json jsonl ndjson ipynb geojson gltf map js yaml yml md mdx markdown rst txt jinja"
XML = "xml svg plist urdf dae rdf html htm xhtml md mdx markdown rst txt jinja"
TEXTS = f"{JSON} {XML} py csv tsv toml cfg ini sh css bib"


def test_what_an_ending_says() -> None:
    assert [ending for ending in WEIGHTS.split() if not holds_weights(f"A.{ending.upper()}")] == []
    assert [ending for ending in CODE.split() if not runs_code(f"A.{ending.upper()}")] == []
    assert not any(holds_weights(name) or runs_code(name) for name in ("config.json", "vocab.txt", "bin", "merges"))


@pytest.mark.parametrize(
    ("endings", "head", "content_type"),
    [(JSON, b'{"a": 1}', ""), (XML, b"<?xml version='1.0'?><a/>", ""), (TEXTS, b"a = 1", "text/html")],
)
def test_a_file_whose_ending_says_what_it_holds_is_left_alone(endings: str, head: bytes, content_type: str) -> None:
    found = {ending: foreign_content(head, content_type, name=f"a.{ending}") for ending in endings.split()}
    assert {ending: words for ending, words in found.items() if words} == {}
    assert foreign_content(head, content_type, name="a.pt")


@pytest.mark.parametrize("byte", [0, 8, 14, 26, 28, 31])
def test_a_byte_that_no_text_has(byte: int) -> None:
    assert foreign_content(b'{"a": 1}' + bytes([byte]), name="w.pt") == ""
    assert foreign_content(b'{"a": 1}\t\n\r\x1b ', name="w.pt") == "a JSON document"
