"""``--volume NAME``: the same verb in a small CPU container on Modal, so that no GPU container pays for a download."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from weightcache.errors import VolumeError
from weightcache.manifest import Manifest
from weightcache.modal.image import add_library, add_manifest, manifest_path

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    import modal

MOUNT = "/mnt/weights"  # not the path that the app uses: a path in the root is relative to its mount
CPU, MEMORY = 2.0, 2048  # cores and MiB: enough to hash as fast as a network brings
TIMEOUT = 6 * 3600  # seconds; a mirror that stalls is given up long before
VERBS = ("ensure", "status", "verify", "prune", "bench")

_TOKENS = "run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"


def add_options(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add what ``verb`` takes to work on a Volume."""
    group = parser.add_argument_group("on Modal")
    does = {"push": "upload to this Volume", "doctor": "look at this Volume"}
    group.add_argument(
        "--volume",
        metavar="NAME",
        required=verb == "push",
        help=does.get(verb, "do it in a small container that mounts this Volume, instead of in --root"),
    )
    group.add_argument("--env", metavar="ENVIRONMENT", help="the environment of the Volume (default: Modal's own)")
    if verb == "ensure":
        group.add_argument(
            "--secret", metavar="NAME", action="append", help="a Secret with the tokens that the manifest names"
        )
    if verb in ("ensure", "push"):
        group.add_argument("--create", action="store_true", help="make the Volume if there is none")
        group.add_argument("--version", type=int, choices=(1, 2), metavar="1|2", help="the version it has or is to get")
    if verb == "doctor":
        group.add_argument(
            "--probe", action="store_true", help="try out there what Modal does not document, and print it as JSON"
        )


def usage_problem(options: argparse.Namespace) -> str | None:
    """Say which options do not go together."""
    if getattr(options, "volume", None) is None:
        given = [name for name in ("env", "secret", "create", "version", "probe") if getattr(options, name, None)]
        return f"--{given[0]} needs --volume" if given else None
    if getattr(options, "dry_run", False) and options.create:
        return "--dry-run cannot be combined with --create"
    if options.verb in VERBS and options.root:
        return "--root is a directory of this machine; with --volume the root is the Volume"
    return None


def run(options: argparse.Namespace) -> int:
    """Run the verb of ``options`` in a container that mounts its Volume; return its exit code.

    Raises:
        WeightCacheError: The manifest is wrong, or the Volume cannot be had; both before anything is started.
    """
    sources = options.manifest if isinstance(options.manifest, list) else [options.manifest]
    if options.verb == "bench":
        sources = []  # it reads what is published, whoever declares it
    manifests = [Manifest.load(source) for source in sources]
    names = getattr(options, "names", None) or None
    secrets = getattr(options, "secret", None) or []
    variables = sorted({variable for each in manifests[:1] for one in each.select(names) for variable in one.variables})
    if options.verb == "ensure" and variables and not secrets:
        print(f"weightcache: no --secret is given, and the manifest names {', '.join(variables)}", file=sys.stderr)
    volume = connect(options)
    places = [manifest_path(f"manifest-{index}") for index in range(len(sources))]

    def with_manifests(image: modal.Image) -> modal.Image:
        for source, place in zip(sources, places, strict=True):
            image = add_manifest(image, source, place)
        return image

    quiet = getattr(options, "quiet", False)
    code, said, heard = in_app(
        options,
        volume,
        lambda start: start(run_verb).remote(volume, _words(options, places), quiet),
        secrets=_secrets(options, secrets),
        image=with_manifests,
    )
    print(said, end="")
    print(heard, end="", file=sys.stderr)
    return int(code)


def run_verb(volume: modal.Volume, words: list[str], quiet: bool) -> tuple[int, str, str]:
    """Run a command line, in the container, and return its code, its results, and what it says besides.

    That goes to the log, which is shown where the command was given; unless ``quiet``, when nobody shows the log.
    """
    from . import main

    said, heard = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(heard if quiet else sys.stderr):
        try:
            code = main.main(words, mounted=volume)
        except SystemExit as end:  # bad usage, as argparse has it
            code = end.code if isinstance(end.code, int) else 2
    return code, said.getvalue(), heard.getvalue()


def _words(options: argparse.Namespace, places: list[str]) -> list[str]:
    words = [options.verb, *getattr(options, "names", []), "--root", MOUNT]
    for place in places:
        words += ["--manifest", place]
    words += [f"--{flag}" for flag in ("json", "offline", "rehash", "quiet", "yes") if getattr(options, flag, False)]
    words += ["--dry-run"] if getattr(options, "dry_run", False) else []
    for setting in ("wait", "patience", "older_than", "size"):
        if hasattr(options, setting):
            words += [f"--{setting.replace('_', '-')}", str(getattr(options, setting))]
    return words


def in_app(
    options: argparse.Namespace,
    volume: modal.Volume,
    call: Callable[[Callable[..., modal.Function[..., Any, Any]]], Any],
    *,
    secrets: list[modal.Secret] | None = None,
    image: Callable[[modal.Image], modal.Image] = lambda image: image,
    functions: dict[Callable[..., Any], modal.Volume] | None = None,
) -> Any:
    """Run an app as long as ``call`` takes, and return what that returns.

    ``call`` is given a function that turns a function of ours into the one in the app: `run_verb`, or each of
    ``functions`` with the Volume as it mounts it. The app's log is shown on stderr: stdout is for results.
    """
    import modal

    app = modal.App("weightcache")
    built = image(add_library(modal.Image.debian_slim()))
    remote = {
        function: app.function(
            image=built,
            volumes={MOUNT: mounted},
            cpu=CPU,
            memory=MEMORY,
            timeout=TIMEOUT,
            secrets=secrets or [],
            include_source=False,  # add_library gives it the whole package
        )(function)
        for function, mounted in (functions or {run_verb: volume}).items()
    }
    shown = nullcontext() if getattr(options, "quiet", False) else modal.enable_output()
    with redirect_stdout(sys.stderr), translated("run a container"), shown, app.run(environment_name=options.env):
        return call(remote.__getitem__)


def connect(options: argparse.Namespace) -> modal.Volume:
    """Return the Volume that ``options`` name, found and not only named.

    Raises:
        VolumeError: There is no modal, no credentials, no such Volume, or it has another version.
    """
    name, version = options.volume, getattr(options, "version", None)
    create = getattr(options, "create", False)
    where = f" in environment {options.env}" if options.env else ""
    try:
        import modal
    except ImportError:
        raise _error(
            "--volume needs the package modal, which is not installed", "pip install 'weightcache[modal]'"
        ) from None
    creates = " or make it with --create (`ensure` and `push` have it)"
    with translated(
        f"open Volume {name}{where}",
        missing=f"`modal volume list` names those that are there; correct --volume or --env,{creates}",
        invalid="leave out --version, or name another Volume: Modal does not turn one version into the other",
    ):
        return modal.Volume.from_name(
            name, environment_name=options.env, create_if_missing=create, version=version
        ).hydrate()


def version_of(options: argparse.Namespace) -> int | None:
    """Return the version of the Volume of ``options``; Modal tells it only by refusing the other one."""
    import modal

    for version in (1, 2):
        with suppress(modal.exception.InvalidError):
            modal.Volume.from_name(options.volume, environment_name=options.env, version=version).hydrate()
            return version
    return None


def _secrets(options: argparse.Namespace, names: list[str]) -> list[modal.Secret]:
    import modal

    found = []
    for name in names:
        with translated(f"open Secret {name}", missing="`modal secret list` names those that are there"):
            found.append(modal.Secret.from_name(name, environment_name=options.env).hydrate())
    return found


@contextmanager
def translated(doing: str, *, missing: str = "", invalid: str = "") -> Iterator[None]:
    """Turn what Modal raises into errors that say what to do.

    Args:
        doing: What is done, as in "open Volume weights".
        missing: What to do if Modal knows no such thing.
        invalid: What to do if Modal refuses it.

    Raises:
        VolumeError: Modal raised something.
    """
    import modal

    known = modal.exception
    hints: list[tuple[type[BaseException], str]] = [
        (known.NotFoundError, missing),
        (known.PermissionDeniedError, "ask the workspace's owner for access, or name another environment with --env"),
        (known.InvalidError, invalid),
        (known.ConnectionError, "is there a network, and is Modal up (https://status.modal.com)? Then try again"),
        (known.VersionError, "pip install --upgrade modal"),
        (known.FunctionTimeoutError, "try again: what was downloaded and committed is kept"),
    ]
    try:
        yield
    except known.AuthError as error:
        if "missing" in str(error).lower():
            raise _error(f"cannot {doing}: there are no Modal credentials here", _TOKENS) from None
        raise _error(
            f"cannot {doing}: Modal refuses the credentials ({_line(error)})",
            f"the token is expired, revoked or of another server; {_TOKENS}",
        ) from None
    except known.Error as error:
        hint = next((hint for kind, hint in hints if isinstance(error, kind) and hint), "")
        raise _error(f"cannot {doing}: {_line(error)}", hint or "see Modal's message above, and try again") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _error(message: str, hint: str) -> VolumeError:
    return VolumeError(message, hint=hint, operation="open")
