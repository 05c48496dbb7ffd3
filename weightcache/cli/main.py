"""The entry point of ``weightcache``: parse the command line, run one command, turn errors into exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

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

from . import modal_runner
from .commands import COMMANDS
from .output import echo, log_shown, print_json
from .parser import build_parser
from .shared_flags import NO_ROOT
from .terminal import Captured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    import modal

    from weightcache._coordination.volume import Volume


_EXIT_CODES: tuple[tuple[type[WeightCacheError], int], ...] = (
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
        argv: The arguments; those of this process if ``None``.
        mounted: In a container, the Volume that is mounted at ``--root``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal in another encoding cannot show every name
    parser = build_parser(COMMANDS)
    options, unknown = parser.parse_known_args(argv, argparse.Namespace(mounted=mounted))
    usage_error: Callable[[str], NoReturn] = options.usage_error  # names the verb, which the parser's own does not
    if unknown:
        usage_error(f"unrecognized arguments: {' '.join(unknown)}")
    command = next(command for command in COMMANDS if command.name == options.verb)
    if problem := modal_runner.usage_problem(command, options):
        usage_error(problem)
    remotely = command.remote and options.volume is not None
    if "root" in options:
        options.root = options.root or os.environ.get("WEIGHTCACHE_ROOT")
        if command.needs_root and not options.root and not remotely:
            usage_error(NO_ROOT)
    try:
        with log_shown():
            code = modal_runner.run(command, options, main_in_container) if remotely else command.run(options)
        sys.stdout.flush()
        return code
    except WeightCacheError as error:
        return _report(error, options)
    except ValueError as error:
        usage_error(str(error))
    except BrokenPipeError:  # `weightcache status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        echo(f"interrupted{command.note_on_interrupt}")
        return 130


def main_in_container(
    volume: modal.Volume, argv: list[str], quiet: bool, columns: int | None = None
) -> tuple[int, str, str]:
    """Run a command line in a container; return its exit code, stdout and stderr.

    Its stderr goes to the log of the container, which the command on the user's machine shows. With ``quiet`` that log
    is not shown, so stderr is returned instead. ``columns`` is the width of the user's terminal, if stdout is one.
    """
    stdout, stderr = Captured(columns), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr if quiet else sys.stderr):
        try:
            code = main(argv, mounted=volume)
        except SystemExit as end:  # argparse exits on invalid usage
            code = end.code if isinstance(end.code, int) else 2
    return code, stdout.getvalue(), stderr.getvalue()


def _report(error: WeightCacheError, options: argparse.Namespace) -> int:
    if "json" in options and options.json:
        print_json(options, {"error": type(error).__name__, "message": str(error.args[0]), "hint": error.hint})
    echo(f"error: {error}")
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 5)
