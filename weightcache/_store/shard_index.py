"""The index of a model that is stored in shards, and which of them a checkpoint lacks.

A repository may hold an index whose shards were not chosen, and a program that loads it fails on the first one that is
not there, long after the download.
"""

from __future__ import annotations

import json
import posixpath
import re
from typing import TYPE_CHECKING

from weightcache.manifest.validate import path_problem

from .content_sniffing import holds_weights

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_INDEX_BYTES = 1 << 26  # bytes of an index; those of the largest models have a tenth
_SHOWN = 3
_INDEX = re.compile(r".+\.index(\.[A-Za-z0-9_-]+)?\.json")  # model.safetensors.index.json, ….index.fp16.json


def is_index(path: str) -> bool:
    """Whether a file is an index of shards, by the name that transformers and diffusers give to one."""
    return _INDEX.fullmatch(posixpath.basename(path)) is not None


def missing_shards(index: str, data: bytes, chosen: Collection[str], listed: Collection[str] | None = None) -> str:
    """Say which shards an index names that are not among the chosen files; empty if there is nothing to say.

    Nothing is said of an index of which no shard was chosen if other weights lie beside it: a repository has the same
    model in several formats, and one is enough.

    Args:
        index: Path of the index.
        data: Its bytes.
        chosen: Paths of all files of the checkpoint.
        listed: Paths of all files that could be chosen, if that is known.
    """
    shards = _shards(index, data)
    lacking = sorted(shards - set(chosen))
    folder = posixpath.dirname(index)
    others = any(holds_weights(path) and posixpath.dirname(path) == folder for path in chosen)
    if not lacking or (len(lacking) == len(shards) and others):
        return ""
    shown = [shard if path_problem(shard) is None else f"{shard!r:.120}" for shard in lacking[:_SHOWN]]
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    nowhere = listed is not None and not set(lacking) & set(listed)
    where = "not there" if nowhere else "not among the files of this checkpoint"
    return f"{index} names {len(shards)} shards, and {len(lacking)} of them are {where}: {', '.join(shown)}{more}"


def _shards(index: str, data: bytes) -> set[str]:
    try:
        said = json.loads(data)
        names = said["weight_map"].values()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return set()  # another kind of file by that name
    folder = posixpath.dirname(index)
    return {posixpath.normpath(posixpath.join(folder, name)) for name in names if isinstance(name, str) and name}
