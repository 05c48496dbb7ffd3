"""Files of torch.save with another pickle in them, as other versions of packages, or an attacker, write them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def repacked(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Replace the pickle of a zip file by what ``change`` makes of it."""
    with zipfile.ZipFile(path) as source:
        records = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records.items():
            new = change(data) if name.endswith("data.pkl") else data
            assert new != data or not name.endswith("data.pkl")
            target.writestr(name, new)
    return path


def replacing(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


def with_pickle(path: Path, pickle: bytes) -> Path:
    """Write a zip file as torch.save does, with this pickle."""
    torch.save({"w": torch.ones(3)}, path)
    return repacked(path, lambda _: pickle)


def save(path: Path, value: Any, *, legacy: bool = False, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, **options)
    return path
