"""Tags: names that move from version to version of a checkpoint (format 1).

A tag is a directory with one immutable file for each publication, ``<order>-<full digest>.json``. The last one in the
order of the names is what the tag stands for. One file that is replaced would lose publications: on a Volume the last
writer of a path wins, and locks do not cross containers (docs/decisions/0029).

The order is a number of milliseconds: the clock of the publisher, or one more than the largest number that it sees.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightcache._runtime.atomic_replace import replace_file
from weightcache._runtime.unannounced_write_check import require_writing
from weightcache._runtime.writer_identity import Writer
from weightcache.errors import ManifestError, StorageError
from weightcache.manifest import Checkpoint, Manifest, Tag
from weightcache.manifest.validate import name_problem

from .inspect import RECEIPT_BYTES, list_directories, list_names, read_bytes
from .partial_directory import UNFINISHED_RECEIPT
from .root_checks import refuse_links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from .layout import Layout

FORMAT = 1
_MILLISECOND = 1_000_000  # nanoseconds
_DIGITS = 14  # milliseconds until the year 5138, so that the order of the names is the order of the numbers
_LONGEST_TIME = 40  # characters of `published`
_FILE = re.compile(rf"(?P<order>[0-9]{{{_DIGITS}}})-(?P<digest>[0-9a-f]{{64}})\.json")


@dataclass(frozen=True)
class Publication:
    """One time that a version of a checkpoint got a tag.

    Attributes:
        tag: The tag.
        checkpoint: The version, with its digests and sizes and without URLs.
        order: The publication with the largest number is what the tag stands for: milliseconds since the epoch, or
            more if the publisher saw a larger number.
        published: When, by the clock of the publisher, in UTC.
        keep: How many versions `prune` keeps for this tag; ``None`` for all.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    tag: Tag
    checkpoint: Checkpoint
    order: int
    published: str
    keep: int | None = None


def newest(layout: Layout, tag: Tag) -> Publication | None:
    """Return what a tag stands for in the root as this container sees it; ``None`` if it has no publication.

    Raises:
        StorageError: The file of the last publication is torn or is no publication of this tag.
    """
    while names := _names(layout, tag):
        try:
            return _read(layout, tag, names[0])
        except StorageError as error:  # a prune of this container deleted it, because a later one is there
            if os.path.lexists(error.path):
                raise
    return None


def history(layout: Layout, tag: Tag) -> list[Publication]:
    """Return every publication of a tag, the last one first.

    Raises:
        StorageError: A file is torn or is no publication of this tag.
    """
    return [_read(layout, tag, name) for name in _names(layout, tag)]


def iter_tags(layout: Layout) -> Iterator[Tag]:
    """Yield every tag of the root that has a publication, by checkpoint and name.

    Raises:
        StorageError: A directory of them cannot be read: what they keep would be deleted.
    """
    refuse_links(layout, layout.tags)
    for name in list_directories(layout.tags):
        for tag in list_directories(f"{layout.tags}/{name}"):
            if name_problem(name) is None and name_problem(tag) is None and _names(layout, found := Tag(name, tag)):
                yield found


def publication_files(layout: Layout, tag: Tag) -> list[str]:
    """Return the paths of a tag's publications, the last one first. No file is read."""
    return [f"{layout.tag(tag)}/{name}" for name in _names(layout, tag)]


def _names(layout: Layout, tag: Tag) -> list[str]:
    """Return the files of a tag's publications, the last one first."""
    refuse_links(layout, layout.tag(tag))
    return [name for name in reversed(list_names(layout.tag(tag))) if _FILE.fullmatch(name)]


def _read(layout: Layout, tag: Tag, name: str) -> Publication:
    path = f"{layout.tag(tag)}/{name}"
    data = read_bytes(path, RECEIPT_BYTES)
    if data is None and not os.path.lexists(path):
        problem = "is gone again"
    else:
        try:
            return _parse(tag, name, data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = str(error.problems[0]) if isinstance(error, ManifestError) else str(error)
    raise StorageError(
        f"{path} is no publication of the {tag}: {problem:.300}",
        hint="delete this file, and the tag stands for the version published before; or publish again",
        path=path,
    )


def _parse(tag: Tag, name: str, data: bytes | None) -> Publication:
    """Return what a file says, after every part of it was checked: anybody with write access could have written it."""
    try:
        document = json.loads(data or b"")
    except ValueError:
        raise ValueError(
            f"its {len(data or b'')} bytes are not JSON; it is torn, or another program wrote it"
        ) from None
    if not isinstance(document, dict):
        raise TypeError("it is no JSON object")
    if document.get("format") != FORMAT:
        raise ValueError(f"it has format {document.get('format')!r:.40}, and this weightcache reads format {FORMAT}")
    if document.get("check") != _check(document):
        raise ValueError("its check does not match its content")
    if (document["name"], document["tag"]) != (tag.name, tag.tag):
        raise ValueError(f"it is of the tag {document['tag']!r:.120} of {document['name']!r:.120}")
    if name != _file_name(document["order"], document["digest"]):
        raise ValueError("its name differs from its order and digest")
    keep = document["keep"]
    if keep is not None and (type(keep) is not int or keep < 1):
        raise ValueError(f"keep is {keep!r:.40}")
    published = document["published"]
    if not (isinstance(published, str) and published.isprintable() and len(published) <= _LONGEST_TIME):
        raise ValueError("its time is no text of one line")  # it is printed, and could control the terminal
    checkpoint = declared(tag.name, document["files"], is_directory=document["directory"] is True)
    if checkpoint.digest != document["digest"]:
        raise ValueError(f"the digest of its files is {checkpoint.digest}")
    return Publication(tag, checkpoint, document["order"], published, keep)


def declared(name: str, files: Any, *, is_directory: bool) -> Checkpoint:
    """Return the checkpoint of ``files`` (path → sha256 and size), by the rules of manifests.

    Raises:
        ManifestError: They break a rule.
        ValueError: A checkpoint that is no directory has several files, or its file has more than sha256 and size.
    """
    entry: dict[str, object] = {"urls": [], "files": files}
    if not is_directory:
        [(path, pin)] = files.items()
        if unknown := set(pin) - {"sha256", "size"}:  # `urls` and `auth` would send a token to any host
            raise ValueError(f"its file has unknown keys: {sorted(unknown)!r:.120}")
        entry = {"urls": [], "file": path, **pin}
    return Manifest.load({"checkpoints": {name: entry}})[name]


def _check(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_name(order: int, digest: str) -> str:
    return f"{order:0{_DIGITS}d}-{digest}.json"


def next_order(layout: Layout, tag: Tag) -> int:
    """Return a number that is larger than that of every publication that this container sees.

    Raises:
        StorageError: No number is left, because a file claims to be of the year 5138.
    """
    names = _names(layout, tag)
    order = max(time.time_ns() // _MILLISECOND, int(names[0][:_DIGITS]) + 1 if names else 0)
    if order >= 10**_DIGITS:
        path = f"{layout.tag(tag)}/{names[0] if names else ''}"
        raise StorageError(f"{path}: no publication can follow it", hint="delete this file", path=path)
    return order


def write_publication(layout: Layout, publication: Publication) -> tuple[str, int]:
    """Write the file of one publication, at once and durably, and return its path and its size in bytes.

    Raises:
        StorageError: It cannot be written.
    """
    require_writing(layout.root)
    tag, checkpoint = publication.tag, publication.checkpoint
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": tag.name,
        "tag": tag.tag,
        "order": publication.order,
        "published": publication.published,
        "keep": publication.keep,
        "directory": checkpoint.is_directory,
        "digest": checkpoint.digest,
        "files": {file.path: {"sha256": file.sha256, "size": file.size} for file in checkpoint.files},
    }
    document["check"] = _check(document)
    path = f"{layout.tag(tag)}/{_file_name(publication.order, checkpoint.digest)}"
    data = f"{json.dumps(document, indent=1)}\n".encode()
    refuse_links(layout, layout.tag(tag), layout.partials)
    try:
        for folder in (layout.tag(tag), layout.partials):
            os.makedirs(folder, exist_ok=True)
        # Among the partials, where it is swept if this process dies first.
        fresh = f"{layout.partials}/{UNFINISHED_RECEIPT}.{Writer.new(layout.root)}"
        replace_file(path, data, fresh, durable=True)
    except OSError as error:
        raise StorageError.of(error, "write the publication", path) from None
    return path, len(data)


def retention(layout: Layout, older_than: float) -> tuple[set[tuple[str, str]], list[str]]:
    """Return what tags keep, as (name, full digest), and the files of the publications that they keep no longer.

    The last publication of a tag says how many versions it keeps. A version that lost the tag fewer than
    ``older_than`` seconds ago is kept as well: a container may still load it.

    Raises:
        StorageError: A file is torn, cannot be read or is no publication of its tag, so what it keeps is not known.
    """
    kept: set[tuple[str, str]] = set()
    expired: list[str] = []
    for tag in iter_tags(layout):
        publications = history(layout, tag)
        mine = _kept(publications, older_than) if publications else []  # they may be gone since
        kept |= {(tag.name, each.checkpoint.digest) for each in mine}
        names = {_file_name(each.order, each.checkpoint.digest) for each in mine}
        expired += [path for path in publication_files(layout, tag) if os.path.basename(path) not in names]
    return kept, expired


def _kept(publications: Sequence[Publication], older_than: float) -> list[Publication]:
    keep = publications[0].keep
    if keep is None:
        return list(publications)
    now, kept, digests = time.time() * 1000, [], set[str]()
    for index, each in enumerate(publications):
        lately = index > 0 and now - publications[index - 1].order < older_than * 1000
        if lately or (each.checkpoint.digest not in digests and len(digests) < keep):
            kept.append(each)
            digests.add(each.checkpoint.digest)
    return kept
