"""``weightcache add``: append a checkpoint to the manifest, pinned."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from weightcache._pinning.new_entry import declare, find_kind, secret_problem, use_suggested_name
from weightcache._pinning.unpinned_entries import UNKNOWN, HubUrl, Pin, drafts
from weightcache.errors import redacted
from weightcache.manifest import Checkpoint, File
from weightcache.manifest.urls import name_from_url
from weightcache.manifest.validate import name_problem

from .add_from_dir import directory_drafts, directory_sources, publish_directory
from .command_spec import Command, Flag
from .output import echo
from .pin_staging import open_staging
from .pinning import check_digest_argument, check_expected, complete_draft, print_pins, to_json
from .sha256sums import read_sha256sums
from .shared_flags import EXPECT, JSON, MANIFEST, PRINT, QUIET, ROOT, SIGNATURE, SIGNED_BY, signing_key
from .toml_edit import ManifestFile

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from weightcache._pinning.unpinned_entries import Draft

    from .pin_staging import Staging


def run(options: argparse.Namespace) -> int:
    """Append pinned entries to the manifest, which is created if it does not exist; print them.

    Raises:
        WeightCacheError: The manifest is invalid, or a mirror does not deliver. Nothing was changed.
        ValueError: The options cannot be combined, or the name is taken.
    """
    print_pins(_add(options), options, added=True)
    return 0


def _add(options: argparse.Namespace) -> list[dict[str, Any]]:
    _check_usage(options)
    for url in options.urls:
        if problem := secret_problem(url):
            raise ValueError(f"{redacted(url)}: {problem}")
    file = ManifestFile(options.manifest, writes=not options.print)
    sources = directory_sources(options, file.path) if options.from_dir else []
    names = [name for name, _ in sources] or [options.name]
    _check_names(names, file, options.manifest)  # now: the downloads that follow may take an hour
    if options.expect and len(names) != 1:
        raise ValueError("--expect is the digest of one checkpoint, and this adds several")
    with open_staging(options.root) as staging:
        expected = options.expect is not None
        added = directory_drafts(sources, expected=expected) if sources else [_from_urls(options, staging)]
        for draft in added:
            check_expected(draft, options.expect)
        pinned = [draft.checkpoint() for draft in added]
        if not options.print:
            file.add(pinned)
        if staging is not None and not options.from_dir:
            staging.publish(pinned, quiet=options.quiet)
    if options.from_dir and options.root:
        publish_directory(options, sources, pinned)
    return [to_json(draft, changed=True) for draft in added]


def _check_names(names: Sequence[str], file: ManifestFile, shown: str) -> None:
    for name in names:
        if problem := name_problem(name):
            raise ValueError(f"NAME {name!r:.120}: {problem}")
    declared = file.raw.get("checkpoints", {})
    known = {draft.name for draft in drafts(file.raw, shown)} if declared != {} else set[str]()
    if taken := sorted(known & set(names)):
        raise ValueError(f"{shown} already declares {', '.join(taken)}; `weightcache pin` completes an entry")
    file.check_add([Checkpoint(name, (), (File("-", UNKNOWN),)) for name in names])


def _check_usage(options: argparse.Namespace) -> None:
    check_digest_argument(options.expect)
    if options.signed_by and options.from_sha256sums:
        raise ValueError("--signed-by cannot be combined with --from-sha256sums: both say which digests are right")
    if options.from_dir:
        for name in ("urls", "file", "auth", "include", "exclude", "from_sha256sums", "signed_by", "signature"):
            if getattr(options, name):
                raise ValueError(
                    f"--from-dir cannot be combined with {'URL' if name == 'urls' else f'--{name}'.replace('_', '-')}"
                )
        if options.link and not options.root:
            raise ValueError("--link needs --root: the directory to link the files into")
    elif options.link:
        raise ValueError("--link needs --from-dir")
    elif not options.name or not options.urls:
        raise ValueError("want NAME and URL, as in: weightcache add sam2 https://…/sam2.pt")


def _from_urls(options: argparse.Namespace, staging: Staging | None) -> Draft:
    key = signing_key(options)  # before anything is requested
    hub = HubUrl.parse(options.urls[0])
    listed = bool(options.from_sha256sums or key) and (hub is None or bool(hub.path))
    # "-": it is a directory, or its name comes from the list.
    file = options.file or ("-" if listed else None)
    draft = declare(options.name, options.urls, auth=options.auth, file=file, source="the command line", say=echo)
    signed = None
    if key:
        from weightcache._pinning.signed_pins import check_signed, use_signed_files

        signed = use_signed_files(
            draft, key, options.signature, file=options.file, include=options.include, exclude=options.exclude
        )
    elif options.from_sha256sums:
        _use_sha256sums(draft, options)
    else:
        find_kind(draft)
    if draft.is_directory and options.file:
        raise ValueError("--file names the file of a checkpoint that is one file; this one is a directory")
    if not draft.is_directory and (options.include or options.exclude):
        raise ValueError("--include and --exclude select files of a repository or list; this is one file")
    complete_draft(draft, staging, options)
    if signed:
        check_signed(draft, signed)
    if not options.file and (other := use_suggested_name(draft)):
        draft.warn(f"the server calls it {other}; to use that name, give --file {shlex.quote(other)}")
    return draft


def _use_sha256sums(draft: Draft, options: argparse.Namespace) -> None:
    digests = read_sha256sums(options.from_sha256sums)
    evidence = f"listed in {options.from_sha256sums}"
    if inner := "" if draft.is_directory else _listed(digests, draft.urls[0]):
        draft.pins = {options.file or inner.rpartition("/")[2]: Pin(digests[inner], None, evidence)}
        return
    from weightcache._pinning.hub_client import select_files

    draft.is_directory = draft.knows_files = True
    selected = select_files(sorted(digests), options.include, options.exclude, f"in {options.from_sha256sums}")
    draft.pins = {path: Pin(digests[path], None, evidence) for path in selected}
    draft.check(options.from_sha256sums)


def _listed(digests: Mapping[str, str], url: str) -> str:
    """Return the path in a list of the file at ``url``; empty if the list does not have it.

    Raises:
        ValueError: Several paths match, with different digests.
    """
    hub = HubUrl.parse(url)
    name = hub.path.rpartition("/")[2] if hub else name_from_url(url)
    found = [path for path in digests if path.rpartition("/")[2] == name]
    where = url if hub else unquote(url.partition("?")[0])
    if len(nearest := [path for path in found if "/" in path and where.endswith(f"/{path}")]) == 1:
        found = nearest
    if len({digests[path] for path in found}) > 1:
        raise ValueError(f"the list has {' and '.join(found[:3])}; give the digest of {name} to --expect instead")
    return found[0] if found else ""


COMMAND = Command(
    "add",
    "declare a checkpoint: find its digests, and append its pinned entry to the manifest",
    (
        Flag(("name",), "the name of the checkpoint", metavar="NAME", nargs="?"),
        Flag(
            ("urls",),
            "its mirrors in order of preference; hf://REPO@BRANCH for the Hub",
            metavar="URL",
            nargs="*",
        ),
        MANIFEST,
        ROOT,
        JSON,
        Flag(("--file",), "the name of the published file", metavar="NAME"),
        Flag(("--auth",), "the environment variable that holds its token", metavar="VARIABLE"),
        Flag(
            ("--include",),
            "only these files of a repository or list; may be repeated",
            metavar="GLOB",
            default=[],
            repeat=True,
        ),
        Flag(
            ("--exclude",),
            "not these files of a repository or list; may be repeated",
            metavar="GLOB",
            default=[],
            repeat=True,
        ),
        Flag(
            ("--from-sha256sums",),
            "read digests from a list of them; URL is the file, or its directory",
            metavar="FILE",
            completes="file",
        ),
        Flag(
            ("--from-dir",),
            "declare the files of a directory; with --root, publish them",
            metavar="DIR",
            completes="directory",
        ),
        Flag(("--link",), "with --from-dir: make hard links in the root instead of copies"),
        replace(SIGNED_BY, help="declare only files that this key signed (PEM), and refuse other bytes"),
        SIGNATURE,
        EXPECT,
        PRINT,
        QUIET,
    ),
    run,
    needs_root=False,
)
