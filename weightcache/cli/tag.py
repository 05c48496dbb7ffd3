"""``weightcache tag``: list the tags of a root, let one stand for a version that is there, or delete one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import weightcache
from weightcache import Tag
from weightcache._size_text import size_text

from .command_spec import Command, Flag, Remote
from .output import echo, print_json, print_table
from .shared_flags import ENV, JSON, KEEP, ROOT, TAG, VOLUME
from .terminal import Cell

if TYPE_CHECKING:
    import argparse

    from weightcache import Publication


def run(options: argparse.Namespace) -> int:
    """Print the publications of tags, after setting or deleting one.

    Raises:
        ValueError: The options contradict each other.
        WeightCacheError: See `weightcache.set_tag`, `weightcache.delete_tag` and `weightcache.tags`.
    """
    if options.delete:
        if None in (options.name, options.tag) or (options.version_to_tag, options.keep) != (None, None):
            raise ValueError("--delete needs NAME and --tag TAG, and neither a VERSION nor --keep")
        tag = Tag(options.name, options.tag)
        deleted = weightcache.delete_tag(tag, root=options.root, volume=options.mounted)
        echo(f"deleted the {tag} ({len(deleted)} publication(s)); its versions stay until prune deletes them")
    elif options.version_to_tag is not None:
        weightcache.set_tag(
            Tag(options.name, options.tag or "newest"),
            options.version_to_tag,
            root=options.root,
            volume=options.mounted,
            keep=options.keep,
        )
    elif options.keep is not None:
        raise ValueError("--keep needs a VERSION")
    found = [
        each
        for each in weightcache.tags(root=options.root, volume=options.mounted)
        if options.name in (None, each.tag.name) and options.tag in (None, each.tag.tag)
    ]
    current = {each.tag: each for each in reversed(found)}
    if options.json:
        rows = [_to_json(each, is_current=current[each.tag] is each) for each in found]
        print_json(options, {"publications": rows})
    else:
        table = [_row(each, is_current=current[each.tag] is each) for each in found]
        print_table(table, (Cell.NAME, Cell.NAME, Cell.WORD, Cell.NUMBER, Cell.WORD, Cell.TEXT))
    return 0


def _to_json(publication: Publication, *, is_current: bool) -> dict[str, object]:
    return {
        "name": publication.tag.name,
        "tag": publication.tag.tag,
        "current": is_current,
        "version": publication.checkpoint.version,
        "digest": publication.checkpoint.digest,
        "size": publication.checkpoint.size,
        "published": publication.published,
        "order": publication.order,
        "keep": publication.keep,
    }


def _row(publication: Publication, *, is_current: bool) -> list[str]:
    size = size_text(publication.checkpoint.size or 0)
    keep = "" if publication.keep is None else f", keep {publication.keep}"
    mark = f"current{keep}" if is_current else ""
    tag = publication.tag
    return [tag.name, tag.tag, publication.checkpoint.version, size, publication.published, mark]


COMMAND = Command(
    "tag",
    "list the tags of the root; with a VERSION, let the tag of NAME stand for it; with --delete, delete it",
    (
        Flag(("name",), "the checkpoint (default: all)", Remote.SEND, metavar="NAME", nargs="?"),
        Flag(
            ("version_to_tag",),
            "a version of NAME that is in the root, 16 hex digits: to roll back, for example",
            Remote.SEND,
            metavar="VERSION",
            nargs="?",
        ),
        replace(TAG, help="the tag (default: all when listing, newest with a VERSION)"),
        KEEP,
        Flag(("--delete",), "delete the tag of NAME that --tag names; no version is deleted", Remote.SEND),
        ROOT,
        JSON,
        VOLUME,
        ENV,
    ),
    run,
    remote=True,
)
