"""The words of the command line: its verbs, their options, and their help."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import weightcache

from . import add, bench, modal_runner, pin, publish

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODES = """\
exit codes:
  0  all is well
  1  a checkpoint is not ready (missing, partial, unverified, damaged, or not cached and not to be fetched)
  2  bad usage or manifest
  3  a download failed (also: wrong bytes)
  4  waited too long for another process
  5  volume or storage failed
"""


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


class _Once(argparse.Action):
    """Refuse to be given twice, where argparse would forget the first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: object) -> None:
        if getattr(namespace, self.dest) is not self.default:
            parser.error(f"{'/'.join(self.option_strings)} is given twice; this verb takes one manifest")
        setattr(namespace, self.dest, value)


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
    for name, verb in _VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=f"{verb.summary[0].upper()}{verb.summary[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=_Formatter,
        )
        _add_common_arguments(sub, verb)
        if name in (*modal_runner.VERBS, "push", "doctor"):
            modal_runner.add_options(sub, name)
        verb.add_arguments(sub)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser, verb: _Verb) -> None:
    if verb.names:
        parser.add_argument(
            "names", nargs="*", metavar="NAME", help="checkpoints; all of the manifest's if none is named"
        )
    about = "the manifest (default: ./weights.toml)"
    if verb.manifest == "one":
        parser.add_argument("-m", "--manifest", metavar="FILE", default="weights.toml", action=_Once, help=about)
    elif verb.manifest == "several":
        about += "; give every one that is in use"
        parser.add_argument("-m", "--manifest", metavar="FILE", action="append", help=about)
    parser.add_argument("--root", metavar="DIR", help="the directory of the weights (default: $WEIGHTCACHE_ROOT)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _ensure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="forbid every URL")
    parser.add_argument("--rehash", action="store_true", help="hash what is published, and heal what is wrong")
    parser.add_argument(
        "--wait",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long another's download may make no progress (default: 300)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long a mirror that delivered may give nothing (default: 180)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--dry-run", action="store_true", help="list what would be done and fetched; change nothing")


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="delete; without it, only list")
    parser.add_argument(
        "--older-than",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="spare what was verified more recently (default: 3600)",
    )


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask, however much it is")


class _Verb(NamedTuple):
    """One verb.

    Attributes:
        summary: What it does.
        names: Whether it takes names of checkpoints.
        manifest: How many it takes: ``"one"``, ``"several"``, or none if empty.
        add_arguments: Adds what only it takes.
    """

    summary: str
    names: bool = False
    manifest: str = ""
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None


_VERBS = {
    "ensure": _Verb("make checkpoints ready: verify, adopt, or fetch what is missing", True, "one", _ensure),
    "status": _Verb("say what the root holds, without hashing", True, "one"),
    "verify": _Verb("hash every byte of what is published; write nothing", True, "one"),
    "prune": _Verb("list what no manifest declares, and with --yes delete it", False, "several", _prune),
    "add": _Verb("declare a checkpoint: find out its digests, and append it pinned", False, "one", add.add_arguments),
    "pin": _Verb("complete what lacks a digest, size, commit or list of files", True, "one", pin.add_arguments),
    "push": _Verb(
        "upload to a Volume what this root has, verified before and in the published layout", True, "one", _push
    ),
    "publish": _Verb(
        "copy weights that were made here into the root; print their entry", add_arguments=publish.add_arguments
    ),
    "bench": _Verb(
        "measure how fast what is published can be read, and say with how many reads", add_arguments=bench.add_arguments
    ),
    "doctor": _Verb(
        "look for what goes wrong in practice: root, disk, locks, tokens, weights in the image", manifest="one"
    ),
}
