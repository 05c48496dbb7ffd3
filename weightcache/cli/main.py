"""The command ``weightcache``: each verb is one function of the library, its result as a table or as JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import weightcache
from weightcache.errors import (
    DownloadError,
    LockTimeoutError,
    ManifestError,
    NotCachedError,
    StorageError,
    UnknownCheckpointError,
    VolumeError,
    WeightCacheError,
)

from . import add, bench, doctor, dry_run, modal_runner, pin, publish
from .parser import build_parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from weightcache import Status
    from weightcache._coordination.volume import Volume

_CODES: tuple[tuple[type[WeightCacheError], int], ...] = (
    (NotCachedError, 1),
    (ManifestError, 2),
    (UnknownCheckpointError, 2),
    (DownloadError, 3),
    (LockTimeoutError, 4),
    (StorageError, 5),
    (VolumeError, 5),
)


def main(argv: Sequence[str] | None = None, *, mounted: Volume | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The words; those of this process if ``None``.
        mounted: The Volume in whose container this runs, mounted at ``--root``.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if problem := modal_runner.usage_problem(options):
        parser.error(problem)
    on_volume = getattr(options, "volume", None) is not None and options.verb != "push"
    options.root = options.root or os.environ.get("WEIGHTCACHE_ROOT")
    if not options.root and not on_volume and options.verb not in ("add", "pin"):
        parser.error("no root: give --root DIR or set WEIGHTCACHE_ROOT")
    options.manifest = getattr(options, "manifest", None) or ["weights.toml"]
    options.mounted = mounted
    try:
        there = on_volume and options.verb in modal_runner.VERBS
        code = int(modal_runner.run(options) if there else globals()[f"_{options.verb}"](options))
        sys.stdout.flush()
        return code
    except WeightCacheError as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), 5)
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error.args[0]), "hint": error.hint}))
        print(f"weightcache: {error}", file=sys.stderr)
        return code
    except ValueError as error:
        parser.error(str(error))
    except BrokenPipeError:  # `weightcache status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        kept = "; each MiB of a file that was complete is kept" if options.verb == "ensure" else ""
        print(f"weightcache: interrupted{kept}", file=sys.stderr)
        return 130


def _ensure(options: argparse.Namespace) -> int:
    if options.dry_run:
        return dry_run.dry_run(options)
    weights = weightcache.ensure(
        options.manifest,
        root=options.root,
        volume=options.mounted,
        only=options.names or None,
        offline=options.offline,
        rehash=options.rehash,
        wait=options.wait,
        patience=options.patience,
        progress=False if options.quiet else None,
    )
    rows = [{"name": name, "path": str(weights[name]), **asdict(weights.report[name])} for name in weights]
    if options.json:
        report = weights.report
        _print_json(
            {
                "checkpoints": rows,
                "seconds": report.seconds,
                "waited": report.waited,
                "waited_for": report.waited_for,
                "warnings": report.warnings,
            }
        )
    else:
        _print_table(
            [
                [
                    row["name"],
                    row["outcome"],
                    f"{row['bytes_fetched'] / 1e6:.1f} MB",
                    f"{row['seconds']:.1f} s",
                    row["path"],
                ]
                for row in rows
            ]
        )
    return 0


def _status(options: argparse.Namespace) -> int:
    return _show(weightcache.status(options.manifest, root=options.root, only=options.names or None), options)


def _verify(options: argparse.Namespace) -> int:
    return _show(weightcache.verify(options.manifest, root=options.root, only=options.names or None), options)


def _show(found: list[Status], options: argparse.Namespace) -> int:
    if options.json:
        _print_json([{**asdict(each), "path": str(each.path)} for each in found])
    else:
        rows = []
        for each in found:
            extra = f"{len(each.extra)} extra file(s): {', '.join(each.extra[:3])}" if each.extra else ""
            detail = "; ".join(part for part in (each.detail, extra) if part)
            rows.append(
                [
                    each.name,
                    each.state,
                    "" if each.size is None else f"{each.size / 1e6:.1f} MB",
                    str(each.path),
                    detail,
                ]
            )
        _print_table(rows)
    return 0 if all(each.state == "ready" for each in found) else 1


def _prune(options: argparse.Namespace) -> int:
    gone = weightcache.prune(
        *options.manifest,
        root=options.root,
        volume=options.mounted,
        dry_run=not options.yes,
        older_than=options.older_than,
    )
    if options.json:
        _print_json({"deleted" if options.yes else "would delete": [str(path) for path in gone]})
    else:
        for path in gone:
            print(f"{'deleted' if options.yes else 'would delete'}  {path}")
        if not gone:
            print("nothing to delete")
        elif not options.yes:
            print("nothing was deleted; --yes deletes", file=sys.stderr)
    return 0


def _push(options: argparse.Namespace) -> int:
    from .push import push

    rows = push(options)
    if options.json:
        _print_json(rows)
    else:
        _print_table([[row["name"], row["outcome"], f"{row['bytes'] / 1e6:.1f} MB", row["path"]] for row in rows])
    return 0 if all(row["outcome"] != "missing" for row in rows) else 1


def _add(options: argparse.Namespace) -> int:
    _show_pins(add.add(options), options)
    return 0


def _pin(options: argparse.Namespace) -> int:
    rows, code = pin.pin(options)
    if not (options.check or options.check_upstream):
        _show_pins(rows, options)
    elif options.json:
        _print_json(rows)
    else:
        findings = [(row["name"], each) for row in rows for each in row.get("unpinned") or row.get("moved") or ()]
        _print_table(
            [["WARN", name, text] for name, text in findings]
            or [["ok", "nothing moved" if options.check_upstream else "everything is pinned"]]
        )
    return code


def _show_pins(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        _print_json(rows)
        return
    if options.print:
        print("\n".join(row["entry"] for row in rows if row["changed"] or options.verb == "add"), end="")
    where = sys.stderr if options.print else sys.stdout
    done = "pinned" if options.print else f"{'added to' if options.verb == 'add' else 'pinned in'} {options.manifest}"
    for row in rows:
        print(f"{row['name']}: {done if row['changed'] else 'was pinned already'}", file=where)
        for path, file in row["files"].items():
            size = "unknown length" if file["size"] is None else f"{file['size']:,} bytes"
            print(f"  {path}  {size}  {file['sha256']}\n    {file['from']}", file=where)


def _bench(options: argparse.Namespace) -> int:
    if options.size < 1:
        raise ValueError("--size is a number of MB, 1 or more")
    told = bench.bench(options.root, options.size * 10**6)
    if options.json:
        _print_json(told)
    else:
        _print_table(bench.table(told))
        print(told["advice"])
    return 0


def _publish(options: argparse.Namespace) -> int:
    return publish.publish(options)


def _doctor(options: argparse.Namespace) -> int:
    if options.probe:
        from .volume_probe import probe

        _print_json(probe(options))
        return 0
    findings = doctor.examine(options.manifest, options.root) if options.root else []
    if options.volume is not None:
        findings += doctor.examine_volume(options)
    if options.json:
        _print_json([asdict(each) for each in findings])
    else:
        _print_table(
            [["ok" if each.ok else "WARN" if not each.code else "FAIL", each.check, each.text] for each in findings]
        )
    return max((each.code for each in findings if not each.ok), default=0)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
