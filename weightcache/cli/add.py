"""``weightcache add``: a checkpoint becomes an entry of the manifest, pinned."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from weightcache._store.layout import Layout
from weightcache.errors import ManifestError, redacted
from weightcache.manifest import Checkpoint, File
from weightcache.manifest.urls import has_ending, name_from_url, variables
from weightcache.manifest.validate import name_problem, user_path

from .draft import UNKNOWN, Draft, HubUrl, Pin, drafts
from .pin import Keep, add_common_arguments, bring, expect, kept, refuse_odd_digest, row
from .sha256sums import read_sums
from .toml_edit import ManifestFile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

# Query parameters that are secrets: of Azure, Amazon S3, Google Cloud Storage, and of CivitAI and GitLab.
SIGNATURES = {"sig", "signature", "x-amz-signature", "x-goog-signature", "token", "access_token", "private_token"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="what the checkpoint is to be called")
    parser.add_argument(
        "urls", nargs="*", metavar="URL", help="its mirrors in order of preference; hf://REPO@BRANCH for the Hub"
    )
    parser.add_argument("--file", metavar="NAME", help="what the published file is to be called")
    parser.add_argument("--auth", metavar="VARIABLE", help="the environment variable that holds its token")
    several: dict[str, Any] = {"action": "append", "metavar": "GLOB", "default": []}
    parser.add_argument(
        "--include", **several, help="only these files of a repository or list, as `hf download` takes them"
    )
    parser.add_argument("--exclude", **several, help="not these files of a repository or list")
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
    for url in options.urls:
        _refuse_secret(url)
    file = ManifestFile(options.manifest, writes=not options.print)
    places = _places(options, file.path) if options.from_dir else []
    names = [name for name, _ in places] or [options.name]
    _refuse_names(names, file, options.manifest)  # now: what follows may take an hour
    if options.expect and len(names) != 1:
        raise ValueError("--expect is of one checkpoint, and this adds several")
    with kept(options.root) as keep:
        expected = options.expect is not None
        found = _from_directory(places, expected=expected) if places else [_from_urls(options, keep)]
        for draft in found:
            expect(draft, options.expect)
        pinned = [draft.checkpoint() for draft in found]
        if not options.print:
            file.add(pinned)
        if keep is not None and not options.from_dir:
            keep.land(pinned, quiet=options.quiet)
    if options.from_dir and options.root:
        _publish(options, places, pinned)
    return [row(draft, changed=True) for draft in found]


def _refuse_names(names: Sequence[str], file: ManifestFile, shown: str) -> None:
    for name in names:
        if problem := name_problem(name):
            raise ValueError(f"NAME {name!r:.120}: {problem}")
    declared = file.raw.get("checkpoints", {})
    known = {draft.name for draft in drafts(file.raw, shown)} if declared != {} else set[str]()
    if taken := sorted(known & set(names)):
        raise ValueError(f"{shown} declares {', '.join(taken)} already; `weightcache pin` completes an entry")
    file.check_add([Checkpoint(name, (), (File("-", UNKNOWN),)) for name in names])


def _refuse_secret(url: str) -> None:
    """Refuse to write a secret into a manifest, which lies in Git and in images."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise ValueError(
            f"{redacted(url)}: what stands before the @ would be written into the manifest; leave it out, and let "
            "~/.netrc or --auth hold it"
        )
    for name, value in parse_qsl(parts.query if parts.scheme in ("http", "https") else ""):
        if name.lower() in SIGNATURES and not variables(value):
            raise ValueError(
                f"{redacted(url)}: the query's {name} would be written into the manifest; "
                f"write '{name}=${{VARIABLE}}', and set that environment variable to its value"
            )


def _refuse_misuse(options: argparse.Namespace) -> None:
    refuse_odd_digest(options.expect)
    if options.from_dir:
        for name in ("urls", "file", "auth", "include", "exclude", "from_sha256sums"):
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
        from .hub import snapshot

        # Whether a path in a repository is a file or a directory, only the Hub knows.
        said = snapshot(hub, draft.auth, draft.name)
        draft.is_directory = not any(file.path == hub.path for file in said.files)
        draft.knows_files = not draft.is_directory
    elif hub:
        draft.is_directory, draft.knows_files = True, False
    if draft.is_directory and options.file:
        raise ValueError("--file names the file of a checkpoint that is one file; this one is a directory")
    if not draft.is_directory and (options.include or options.exclude):
        raise ValueError("--include and --exclude choose among the files of a repository or list; this is one file")
    if not draft.is_directory and not draft.pins:
        draft.pins = {draft.placeholder().files[0].path: Pin()}
    bring(draft, keep, options)
    if draft.takes_names and not options.file:
        _take_suggested_name(draft)
    return draft


def _take_suggested_name(draft: Draft) -> None:
    """Call the file as its mirror does where the URL ends in a number or word; offer that name where it differs."""
    [(path, pin)] = draft.pins.items()
    if pin.suggested_name in ("", path):
        return
    if has_ending(path):
        draft.warn(
            f"the server calls it {pin.suggested_name}; --file {shlex.quote(pin.suggested_name)} takes that name"
        )
        return
    draft.pins = {pin.suggested_name: pin}
    pin.evidence += "; named as the server does"


def _declared(options: argparse.Namespace) -> Draft:
    """Return the draft of what the command line says, by the manifest's own rules."""
    entry: dict[str, Any] = {"urls": options.urls}
    if options.auth:
        entry["auth"] = options.auth
    hub = HubUrl.parse(options.urls[0])
    if options.file:
        entry["file"] = options.file
    elif hub and hub.path and not options.from_sha256sums:
        entry["file"] = _name_on_the_hub(hub)
    elif options.from_sha256sums and (hub is None or hub.path):
        entry["file"] = "-"  # a directory, or a name that comes from the list
    [draft] = drafts({"checkpoints": {options.name: entry}}, "the command line")
    if entry.get("file") == "-":
        draft.pins = {}
    return draft


def _name_on_the_hub(hub: HubUrl) -> str:
    return hub.path.rpartition("/")[2]


def _take_sums(draft: Draft, options: argparse.Namespace) -> None:
    digests = read_sums(options.from_sha256sums)
    evidence = f"listed in {options.from_sha256sums}"
    if inner := "" if draft.is_directory else _listed(digests, draft.urls[0]):
        draft.pins = {options.file or inner.rpartition("/")[2]: Pin(digests[inner], None, evidence)}
        return
    from .hub import chosen

    draft.is_directory = draft.knows_files = True
    taken = chosen(sorted(digests), options.include, options.exclude, f"in {options.from_sha256sums}")
    draft.pins = {path: Pin(digests[path], None, evidence) for path in taken}
    draft.check(options.from_sha256sums)


def _listed(digests: Mapping[str, str], url: str) -> str:
    """Return the path in a list that is of the file at ``url``; empty if none is.

    Raises:
        ValueError: Several may be, with other digests.
    """
    hub = HubUrl.parse(url)
    name = _name_on_the_hub(hub) if hub else name_from_url(url)
    found = [path for path in digests if path.rpartition("/")[2] == name]
    where = url if hub else unquote(url.partition("?")[0])
    if len(nearest := [path for path in found if "/" in path and where.endswith(f"/{path}")]) == 1:
        found = nearest
    if len({digests[path] for path in found}) > 1:
        raise ValueError(f"the list has {' and '.join(found[:3])}; give the digest of {name} to --expect instead")
    return found[0] if found else ""


def _from_directory(places: Sequence[tuple[str, str]], *, expected: bool) -> list[Draft]:
    from weightcache._engine.publish import hashed, shard_warnings

    found = []
    for name, path in places:
        checkpoint, own = hashed(path, name, pointers=expected)
        draft = _local(checkpoint)
        for text in shard_warnings(checkpoint, own):
            draft.warn(text)
        found.append(draft)
    return found


def _places(options: argparse.Namespace, manifest: str) -> list[tuple[str, str]]:
    """Return what becomes a checkpoint: the whole directory if it is given a name, else everything in it.

    But the manifest and the root, which may lie there as well: both change by being added to.
    """
    top = os.path.abspath(user_path(options.from_dir))
    if not os.path.isdir(top):
        raise ValueError(f"--from-dir {top} is no directory")
    if options.name:
        places = [(options.name, top)]
    else:
        spared = {manifest, os.path.realpath(Layout(options.root).root) if options.root else manifest}
        inner = sorted(each for each in os.listdir(top) if not each.startswith("."))
        inner = [each for each in inner if os.path.realpath(os.path.join(top, each)) not in spared]
        if not inner:
            raise ValueError(f"--from-dir {top} is empty")
        places = _named(top, inner)
    for name, path in places:
        if not options.print and manifest.startswith(f"{os.path.realpath(path)}/"):
            raise ValueError(f"{manifest} lies in {path}, and would be a part of {name}; put it elsewhere (-m)")
    return places


def _named(top: str, inner: Sequence[str]) -> list[tuple[str, str]]:
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


def _publish(options: argparse.Namespace, places: Sequence[tuple[str, str]], pinned: Sequence[Checkpoint]) -> None:
    from weightcache._engine.publish import copy_in

    layout = Layout(options.root)
    for checkpoint, (name, path) in zip(pinned, places, strict=True):
        pointers = options.expect is not None
        if copy_in(path, name, layout, None, may_link=options.link, pointers=pointers)[0] != checkpoint:
            raise ManifestError(
                path, [f"changed after {name} was declared; correct its entry with `weightcache publish {path} {name}`"]
            )
