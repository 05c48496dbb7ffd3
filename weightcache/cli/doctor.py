"""``weightcache doctor``: check this machine for common problems. Leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from weightcache._environment import in_modal_container, set_variable
from weightcache._message_text import listed
from weightcache._runtime.writer_identity import note_path
from weightcache._size_text import size_text
from weightcache._store.inspect import inspect
from weightcache._store.layout import Layout
from weightcache._store.root_checks import check_root
from weightcache.errors import StorageError, WeightCacheError
from weightcache.manifest import Manifest
from weightcache.manifest.validate import MODAL_VOLUMES

from .command_spec import Command, Flag, Group
from .hub_token_check import check_hub_tokens
from .modal_app import connect, version_of
from .output import print_json, print_table
from .request_check import check_requests
from .shared_flags import DEFAULT_MANIFEST, ENV, JSON, MANIFESTS, NO_ROOT, ROOT, VOLUME, manifests_of
from .terminal import Cell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from weightcache.manifest import Checkpoint

PROBE_BYTES = (
    64 << 20
)  # bytes written to find out if there is room, because statfs of a Volume returns placeholder values
_SCAN_LIMIT = 50_000  # directory entries to search for weights in the image


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        check: What was checked.
        ok: Whether there is no problem.
        text: What was found, and what to do.
        code: The exit code if it is a problem; 0 for a warning.
    """

    check: str
    ok: bool
    text: str
    code: int = 0


def run(options: argparse.Namespace) -> int:
    """Print the findings; return the highest exit code among the problems."""
    if not options.root and options.volume is None and options.manifest is None:
        raise ValueError(NO_ROOT)
    if options.probe:
        from .probe_volume_behavior import probe

        print_json(options, probe(options))
        return 0
    findings = examine(manifests_of(options), options.root) if options.root or _has_manifest(options) else []
    if options.volume is not None:
        findings += examine_volume(options)
    if options.json:
        print_json(options, {"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [[_label(finding), finding.check, finding.text] for finding in findings]
        print_table(rows, (Cell.WORD, Cell.WORD, Cell.TEXT))
    return max((finding.code for finding in findings if not finding.ok), default=0)


def _label(finding: Finding) -> str:
    if finding.ok:
        return "ok"
    return "FAIL" if finding.code else "WARN"


def examine(manifests: Sequence[str], root: str | None) -> list[Finding]:
    """Run all checks of this machine; an invalid manifest is one of the findings. Without a root, check the rest."""
    findings, loaded = [], []
    for manifest in manifests:
        try:
            loaded.append(Manifest.load(manifest))
            findings.append(Finding("manifest", True, f"{manifest}: {len(loaded[-1])} checkpoint(s), all pinned"))
        except WeightCacheError as error:
            findings.append(Finding("manifest", False, str(error).replace("\n", " "), 2))
    if root:
        checks: list[Callable[[Layout], Finding]] = [_location, _writable, _locks]
        findings += [check(Layout(root)) for check in checks]
    checkpoints = [checkpoint for manifest in loaded for checkpoint in manifest]
    findings += [Finding("requests", check.ok, check.text) for check in check_requests(checkpoints)]
    findings += _tokens(checkpoints)
    findings += [Finding("token", check.ok, check.text, 3) for check in check_hub_tokens(loaded)]
    if root and checkpoints:
        findings += [_space(Layout(root), checkpoints), _copies_in_image(Layout(root), checkpoints)]
    return findings


def _has_manifest(options: argparse.Namespace) -> bool:
    """Whether a manifest was given, or one lies at the default place."""
    return options.manifest is not None or os.path.exists(DEFAULT_MANIFEST)


def examine_volume(options: argparse.Namespace) -> list[Finding]:
    """Check that the Volume of ``options`` exists, and find its version; nothing is started on Modal."""
    try:
        volume = connect(options)
        version = version_of(options)
    except WeightCacheError as error:
        return [Finding("modal", False, str(error).replace("\n", " "), 5)]
    where = f" in environment {options.env}" if options.env else ""
    return [Finding("modal", True, f"Volume {options.volume}{where} is {volume.object_id}, version {version or '?'}")]


def _location(layout: Layout) -> Finding:
    real = os.path.realpath(layout.root)
    if real.startswith(MODAL_VOLUMES):
        return Finding("volume", True, f"{layout.root} is on the Modal Volume {real[len(MODAL_VOLUMES) :]}")
    if in_modal_container():
        return Finding(
            "volume", False, f"{layout.root} is not on a Modal Volume: its contents are lost when the container stops"
        )
    return Finding("volume", True, f"{layout.root} is a plain directory (not in a Modal container)")


def _writable(layout: Layout) -> Finding:
    try:
        check_root(layout)
    except StorageError as error:
        return Finding("root", False, f"{error.args[0]}; {error.hint}", 5)
    folder = layout.root
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        return Finding("root", False, f"{folder} is not writable: hits work, a miss is an error", 5)
    made = "" if folder == layout.root else f" (and can be created in {folder})"
    return Finding("root", True, f"{layout.root} is writable{made}")


def _locks(layout: Layout) -> Finding:
    try:
        path = note_path(layout.root, f"probe-{secrets.token_hex(4)}")
        with open(path, "w", encoding="utf-8") as first, open(path, "w", encoding="utf-8") as second:
            os.unlink(path)
            fcntl.flock(first, fcntl.LOCK_EX)
            with suppress(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Finding(
                    "locks",
                    False,
                    f"locks in {os.path.dirname(path)} have no effect: several processes may download the same file",
                )
        return Finding("locks", True, f"kernel locks work in {os.path.dirname(path)}")
    except (OSError, WeightCacheError) as error:
        return Finding(
            "locks",
            False,
            f"no kernel locks ({error}): several processes may download the same file; set TMPDIR to a local disk",
        )


def _tokens(checkpoints: Sequence[Checkpoint]) -> Iterator[Finding]:
    users: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        for variable in checkpoint.variables:
            users.setdefault(variable, []).append(checkpoint.name)
    for variable, names in sorted(users.items()):
        there = bool(os.environ.get(variable, "").strip())
        missing = f"{variable} is not set, and {listed(names)} needs it: {set_variable(variable)}"
        text = f"{variable} is set" if there else missing
        yield Finding("token", there, text, 3)


def _space(layout: Layout, checkpoints: Sequence[Checkpoint]) -> Finding:
    not_ready = [checkpoint for checkpoint in checkpoints if inspect(layout, checkpoint).state != "ready"]
    need = sum(checkpoint.size or 0 for checkpoint in not_ready)
    if not need:
        return Finding("room", True, "nothing of declared size is missing")
    if not os.path.isdir(layout.root) or not os.access(layout.root, os.W_OK):
        return Finding(
            "room",
            False,
            f"{size_text(need)} are missing; it cannot be tested if they fit until the root is writable",
        )
    if not os.path.realpath(layout.root).startswith(MODAL_VOLUMES) and shutil.disk_usage(layout.root).free < need:
        return Finding("room", False, f"{size_text(need)} are missing, and less is free in {layout.root}", 5)
    path = f"{layout.root}/.weightcache-probe-{secrets.token_hex(4)}"
    try:
        with open(path, "wb") as stream:
            for _ in range(0, min(need, PROBE_BYTES), 1 << 20):
                stream.write(os.urandom(1 << 20))  # random bytes, which cannot be compressed on the way
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return Finding("room", False, f"writing {PROBE_BYTES >> 20} MiB to {layout.root} failed: {error.strerror}", 5)
    finally:
        with suppress(OSError):
            os.unlink(path)
    return Finding(
        "room",
        True,
        f"{size_text(need)} are missing; a test file of {size_text(min(need, PROBE_BYTES))} could be written",
    )


def _copies_in_image(layout: Layout, checkpoints: Sequence[Checkpoint]) -> Finding:
    """Search the usual directories of weights in an image for files with a declared name and size."""
    files = [file for checkpoint in checkpoints for file in checkpoint.files if file.size]
    wanted: dict[str, set[int | None]] = {}  # by name, the sizes
    for file in files:
        wanted.setdefault(file.path.rpartition("/")[2], set()).add(file.size)
    ours, seen, found = os.path.realpath(layout.root), 0, []
    for start in dict.fromkeys(
        map(os.path.realpath, (os.path.expanduser("~"), os.getcwd(), "/root", "/app", "/models"))
    ):
        for folder, folders, names in os.walk(start):
            folders[:] = [
                name for name in folders if os.path.join(folder, name) != ours and name not in ("proc", "sys")
            ]
            seen += len(names) + len(folders)
            for name in names:
                with suppress(OSError):
                    path = os.path.join(folder, name)
                    if name in wanted and os.stat(path).st_size in wanted[name]:
                        found.append(path)
            if seen > _SCAN_LIMIT:
                break
    large = sorted({path for path in found if os.path.getsize(path) >= 1 << 20})
    if large:
        return Finding("image", False, f"declared weights are also outside the root: {', '.join(large[:3])}")
    return Finding("image", True, "no declared weights are outside the root")


COMMAND = Command(
    "doctor",
    "check for common problems: root, disk, locks, tokens, weights in the image; list which hosts are asked",
    (
        MANIFESTS,
        ROOT,
        JSON,
        replace(VOLUME, help="check this Volume, too"),
        ENV,
        Flag(
            ("--probe",),
            "try out on that Volume what Modal does not document, and print the answers as JSON",
            group=Group.ON_MODAL,
        ),
    ),
    run,
    needs_root=False,
)
