"""The command ``weightcache``: each verb is one function of the library, its result as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import weightcache
from weightcache._tool import add, bench, doctor, pin, publish, remote
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightcache import Status
    from weightcache._volume import Volume

EXIT_CODES = """\
exit codes:
  0  all is well
  1  a checkpoint is not ready (missing, partial, unverified, damaged, or not cached and not to be fetched)
  2  bad usage or manifest
  3  a download failed (also: wrong bytes)
  4  waited too long for another process
  5  volume or storage failed
"""

_CODES: tuple[tuple[type[WeightCacheError], int], ...] = (
    (NotCachedError, 1),
    (ManifestError, 2),
    (UnknownCheckpointError, 2),
    (DownloadError, 3),
    (LockTimeoutError, 4),
    (StorageError, 5),
    (VolumeError, 5),
)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One form of help on every Python: 3.13 writes options with values in another way than 3.12."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {metavar}"


class _Version(argparse.Action):
    """Read the version when it is asked for: in a container that mounts a source checkout there is none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"weightcache {weightcache.__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="weightcache",
        description="Pinned, verified model weights in one root: there, or fetched once.",
        epilog=EXIT_CODES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str, *, names: bool = True, manifest: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=_Formatter,
        )
        if names:
            sub.add_argument(
                "names", nargs="*", metavar="NAME", help="checkpoints; all of the manifest's if none is named"
            )
        several = {"action": "append"} if name == "prune" else {}
        default = None if name == "prune" else "weights.toml"
        if manifest:
            sub.add_argument(
                "-m",
                "--manifest",
                metavar="FILE",
                default=default,
                **several,  # type: ignore[arg-type]
                help="the manifest (default: ./weights.toml)" + ("; give every one that is in use" if several else ""),
            )
        sub.add_argument(
            "--root",
            metavar="DIR",
            help="the directory of the weights (default: $WEIGHTCACHE_ROOT)",
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        if name in (*remote.VERBS, "push", "doctor"):
            remote.add_options(sub, name)
        return sub

    ensure = verb("ensure", "make checkpoints ready: verify, adopt, or fetch what is missing")
    ensure.add_argument("--offline", action="store_true", help="forbid every URL")
    ensure.add_argument("--rehash", action="store_true", help="hash what is published, and heal what is wrong")
    ensure.add_argument(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long another's download may make no progress (default: 300)",
    )
    ensure.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    verb("status", "say what the root holds, without hashing")
    verb("verify", "hash every byte of what is published; write nothing")
    prune = verb("prune", "list what no manifest declares, and with --yes delete it", names=False)
    prune.add_argument("--yes", action="store_true", help="delete; without it, only list")
    prune.add_argument(
        "--older-than",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="spare what was verified more recently (default: 3600)",
    )
    add.add_arguments(verb("add", "declare a checkpoint: find out its digests, and append it pinned", names=False))
    pin.add_arguments(verb("pin", "complete what lacks a digest, size, commit or list of files"))
    push = verb("push", "upload to a Volume what this root has, verified before and in the published layout")
    push.add_argument("--yes", action="store_true", help="do not ask, however much it is")
    made = verb(
        "publish", "copy weights that were made here into the root; print their entry", manifest=False, names=False
    )
    publish.add_arguments(made)
    bench.add_arguments(
        verb(
            "bench",
            "measure how fast what is published can be read, and say with how many reads",
            manifest=False,
            names=False,
        )
    )
    verb("doctor", "look for what goes wrong in practice: root, disk, locks, tokens, weights in the image", names=False)
    return parser


def main(argv: Sequence[str] | None = None, *, mounted: Volume | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The words; those of this process if ``None``.
        mounted: The Volume in whose container this runs, mounted at ``--root``.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    if problem := remote.usage_problem(options):
        parser.error(problem)
    on_volume = getattr(options, "volume", None) is not None and options.verb != "push"
    options.root = options.root or os.environ.get("WEIGHTCACHE_ROOT")
    if not options.root and not on_volume and options.verb not in ("add", "pin"):
        parser.error("no root: give --root DIR or set WEIGHTCACHE_ROOT")
    options.manifest = getattr(options, "manifest", None) or ["weights.toml"]
    options.mounted = mounted
    try:
        there = on_volume and options.verb in remote.VERBS
        code = int(remote.run(options) if there else globals()[f"_{options.verb}"](options))
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
        # What `add` and `pin` read has no digest yet, and nothing to go on from.
        kept = "" if options.verb in ("add", "pin") else "; what was downloaded is kept"
        print(f"weightcache: interrupted{kept}", file=sys.stderr)
        return 130


def _ensure(options: argparse.Namespace) -> int:
    weights = weightcache.ensure(
        options.manifest,
        root=options.root,
        volume=options.mounted,
        only=options.names or None,
        offline=options.offline,
        rehash=options.rehash,
        wait=options.wait,
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
    from weightcache._tool.push import push

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
        from weightcache._tool.probe import probe

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
