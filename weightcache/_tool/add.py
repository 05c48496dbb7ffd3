"""``weightcache add``: a checkpoint becomes an entry of the manifest, pinned."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from weightcache._look import Layout
from weightcache._rules import name_from_url
from weightcache._tool.draft import Draft, HubUrl, Pin, drafts
from weightcache._tool.edit import ManifestFile
from weightcache._tool.hub import snapshot
from weightcache._tool.pin import Keep, add_common_arguments, bring, expect, kept, row
from weightcache._tool.sums import read_sums
from weightcache.errors import ManifestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from weightcache.manifest import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="what the checkpoint is to be called")
    parser.add_argument(
        "urls", nargs="*", metavar="URL", help="its mirrors in order of preference; hf://REPO@BRANCH for the Hub"
    )
    parser.add_argument("--file", metavar="NAME", help="what the published file is to be called")
    parser.add_argument("--auth", metavar="VARIABLE", help="the environment variable that holds its token")
    several: dict[str, Any] = {"action": "append", "metavar": "GLOB", "default": []}
    parser.add_argument("--include", **several, help="only these files of a repository, as `hf download` takes them")
    parser.add_argument("--exclude", **several, help="not these files of a repository")
    parser.add_argument(
        "--from-sha256sums", metavar="FILE", help="take the digests from a list; the URL is the file, or their base"
    )
    parser.add_argument(
        "--from-dir", metavar="DIR", help="declare what lies there, and with --root publish it: no URL is needed"
    )
    parser.add_argument("--link", action="store_true", help="with --from-dir: link its files into the root, not copy")
    add_common_arguments(parser)


def add(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Append pinned entries to the manifest, which is created if there is none; return a row for each.

    Raises:
        WeightCacheError: The manifest is wrong, or a mirror does not deliver. Nothing was changed.
        ValueError: The options do not go together, or the name is taken.
    """
    _refuse_misuse(options)
    path = os.path.expanduser(options.manifest)
    file = ManifestFile(path)
    known = {draft.name for draft in drafts(file.raw, path)} if file.raw.get("checkpoints") else set[str]()
    with kept(options.root) as keep:
        found = _from_directory(options) if options.from_dir else [_from_urls(options, keep)]
        if taken := sorted(known & {draft.name for draft in found}):
            raise ValueError(f"{path} declares {', '.join(taken)} already; `weightcache pin` completes an entry")
        if options.expect and len(found) != 1:
            raise ValueError("--expect is of one checkpoint, and this adds several")
        for draft in found:
            expect(draft, options.expect)
        pinned = [draft.checkpoint() for draft in found]
        if not options.print:
            file.add(pinned)
        if keep is not None and not options.from_dir:
            keep.land(pinned, quiet=options.quiet)
    if options.from_dir and options.root:
        _publish(options, pinned)
    return [row(draft, changed=True) for draft in found]


def _refuse_misuse(options: argparse.Namespace) -> None:
    if options.from_dir:
        for name in ("urls", "file", "include", "exclude", "from_sha256sums"):
            if getattr(options, name):
                raise ValueError(
                    f"--from-dir goes with no {'URL' if name == 'urls' else f'--{name}'.replace('_', '-')}"
                )
        if options.link and not options.root:
            raise ValueError("--link needs --root: where the files are to be linked")
    elif options.link:
        raise ValueError("--link goes with --from-dir")
    elif not options.name or not options.urls:
        raise ValueError("want NAME and URL, as in: weightcache add sam2 https://…/sam2.pt")


def _from_urls(options: argparse.Namespace, keep: Keep | None) -> Draft:
    draft = _declared(options)
    if options.from_sha256sums:
        _take_sums(draft, options)
    elif (hub := HubUrl.parse(draft.urls[0])) and hub.path:
        # Whether a path in a repository is a file or a directory, only the Hub knows.
        said = snapshot(hub, draft.auth, draft.name)
        draft.is_directory = not any(file.path == hub.path for file in said.files)
        draft.knows_files = not draft.is_directory
    elif hub:
        draft.is_directory, draft.knows_files = True, False
    if draft.is_directory and options.file:
        raise ValueError("--file names the file of a checkpoint that is one file; this one is a directory")
    if not draft.is_directory and (options.include or options.exclude):
        raise ValueError("--include and --exclude choose among the files of a repository; this is one file")
    if not draft.is_directory and not draft.pins:
        draft.pins = {draft.placeholder().files[0].path: Pin()}
    bring(draft, keep, options)
    return draft


def _declared(options: argparse.Namespace) -> Draft:
    """Return the draft of what the command line says, by the manifest's own rules."""
    entry: dict[str, Any] = {"urls": options.urls}
    if options.auth:
        entry["auth"] = options.auth
    hub = HubUrl.parse(options.urls[0])
    if options.file:
        entry["file"] = options.file
    elif options.from_sha256sums:
        entry["file"] = "-"  # a directory, or a name that comes from the list
    elif hub and hub.path:
        entry["file"] = name_from_url(hub.at("0" * 40))
    [draft] = drafts({"checkpoints": {options.name: entry}}, "the command line")
    if entry.get("file") == "-":
        draft.pins = {}
    return draft


def _take_sums(draft: Draft, options: argparse.Namespace) -> None:
    digests = read_sums(options.from_sha256sums)
    evidence = f"listed in {options.from_sha256sums}"
    name = name_from_url(draft.urls[0])
    inner = next((path for path in digests if path.rpartition("/")[2] == name), "")
    if inner:
        draft.pins = {options.file or name: Pin(digests[inner], None, evidence)}
        return
    draft.is_directory = True
    draft.pins = {path: Pin(sha256, None, evidence) for path, sha256 in sorted(digests.items())}


def _from_directory(options: argparse.Namespace) -> list[Draft]:
    from weightcache._publish import hashed

    return [_local(hashed(path, name)[0]) for name, path in _places(options.from_dir, options.name)]


def _places(top: str, name: str | None) -> list[tuple[str, str]]:
    """Return what becomes a checkpoint: the whole directory if it is given a name, else everything in it."""
    top = os.path.abspath(os.path.expanduser(top))
    if not os.path.isdir(top):
        raise ValueError(f"--from-dir {top} is no directory")
    if name:
        return [(name, top)]
    inner = sorted(each for each in os.listdir(top) if not each.startswith("."))
    if not inner:
        raise ValueError(f"--from-dir {top} is empty")
    named: dict[str, str] = {}
    for each in inner:
        chosen = _name(each, is_directory=os.path.isdir(os.path.join(top, each)))
        if chosen in named:
            raise ValueError(f"{named[chosen]} and {each} in {top} would both be called {chosen}; add them one by one")
        named[chosen] = each
    return [(chosen, os.path.join(top, each)) for chosen, each in named.items()]


def _name(entry: str, *, is_directory: bool) -> str:
    """Return a checkpoint's name for a file's, without the ending and what no name may hold."""
    stem = entry if is_directory else os.path.splitext(entry)[0]
    return re.sub("[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:100] or "weights"


def _local(checkpoint: Checkpoint) -> Draft:
    pins = {file.path: Pin(file.sha256, file.size, "computed here") for file in checkpoint.files}
    return Draft(checkpoint.name, [], None, checkpoint.is_directory, pins)


def _publish(options: argparse.Namespace, pinned: Sequence[Checkpoint]) -> None:
    from weightcache._publish import publish_path

    layout = Layout(options.root)
    for checkpoint, (name, path) in zip(pinned, _places(options.from_dir, options.name), strict=True):
        if publish_path(path, name, layout, None, link=options.link) != checkpoint:
            raise ManifestError(
                path, [f"changed after {name} was declared; correct its entry with `weightcache publish {path} {name}`"]
            )
