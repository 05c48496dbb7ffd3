"""Running functions of this library in a short-lived app on Modal, and opening the Volume that they mount."""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from weightcache._environment import VOLUME_FLAGS
from weightcache.errors import VolumeError
from weightcache.modal.client_version import check_client_version
from weightcache.modal.image import add_library

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import modal

MOUNT = "/mnt/weights"  # not the path that the app uses: a path in the root is relative to its mount
CPU, MEMORY = 2.0, 2048  # cores and MiB: enough to hash as fast as the network delivers
TIMEOUT = 6 * 3600  # seconds; a stalled mirror is given up long before

_TOKENS = "run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"


def in_app(
    options: argparse.Namespace,
    call: Callable[[Callable[..., modal.Function[..., Any, Any]]], Any],
    functions: Mapping[Callable[..., Any], modal.Volume],
    *,
    secrets: Sequence[modal.Secret] = (),
    image: Callable[[modal.Image], modal.Image] = lambda image: image,
) -> Any:
    """Run an app until ``call`` returns, and return its result.

    The log of the app goes to stderr, because stdout is for results.

    Args:
        options: With the environment, and ``quiet`` to hide the log.
        call: Gets a function that maps each of ``functions`` to the Modal function that runs it.
        functions: What can run in the app, each with the Volume that its container mounts at `MOUNT`.
        secrets: Modal Secrets whose variables the containers have.
        image: Adds to the image, for example manifests.

    Raises:
        VolumeError: Modal failed.
    """
    import modal

    app = modal.App("weightcache")
    built = image(add_library(modal.Image.debian_slim()))
    flags = ["--volume", options.volume, *(["--env", options.env] if options.env else [])]
    known = modal.Secret.from_dict({VOLUME_FLAGS: shlex.join(flags)})  # for hints of the containers
    remote = {
        function: app.function(
            image=built,
            volumes={MOUNT: mounted},
            cpu=CPU,
            memory=MEMORY,
            timeout=TIMEOUT,
            secrets=[*secrets, known],
            include_source=False,  # add_library adds the whole package
        )(function)
        for function, mounted in functions.items()
    }
    shown = nullcontext() if getattr(options, "quiet", False) else modal.enable_output()
    with redirect_stdout(sys.stderr), translated("run a container"), shown, app.run(environment_name=options.env):
        return call(remote.__getitem__)


def connect(options: argparse.Namespace) -> modal.Volume:
    """Return the Volume that ``options`` name, after Modal confirmed that it exists.

    Raises:
        VolumeError: The package modal is missing or too old, the credentials are missing, or the Volume does not exist
            or has another version.
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
    check_client_version(modal.__version__)
    creates = " or create it with --create (an option of `ensure` and `push`)"
    doing = f"open Volume {name}{where}"
    with translated(doing, invalid="correct --volume: `modal volume list` shows the existing names"):
        volume = modal.Volume.from_name(name, environment_name=options.env, create_if_missing=create, version=version)
    with translated(
        doing,
        missing=f"`modal volume list` shows the existing ones; correct --volume or --env,{creates}",
        invalid="leave out --version, or name another Volume: Modal cannot convert a Volume to another version"
        if version
        else "correct --volume and --env, which Modal's message above is about",
    ):
        return volume.hydrate()


def version_of(options: argparse.Namespace) -> int | None:
    """Return the version of the Volume of ``options``, or ``None`` if it is unknown.

    Modal has no call for it, but refuses to open a Volume as another version.
    """
    import modal

    for version in (1, 2):
        with suppress(modal.exception.InvalidError):
            modal.Volume.from_name(options.volume, environment_name=options.env, version=version).hydrate()
            return version
    return None


def open_secrets(options: argparse.Namespace, names: Sequence[str]) -> list[modal.Secret]:
    """Return Modal Secrets by name, after Modal confirmed that they exist.

    Raises:
        VolumeError: One does not exist, or Modal failed.
    """
    import modal

    found = []
    for name in names:
        with translated(f"open Secret {name}", missing="`modal secret list` shows the existing ones"):
            found.append(modal.Secret.from_name(name, environment_name=options.env).hydrate())
    return found


@contextmanager
def translated(doing: str, *, missing: str = "", invalid: str = "") -> Iterator[None]:
    """Raise Modal's errors as a `VolumeError` with a hint.

    Args:
        doing: What is done, as in "open Volume weights".
        missing: The hint if the object does not exist.
        invalid: The hint if Modal refuses the request.

    Raises:
        VolumeError: Modal raised an error.
    """
    import modal

    known = modal.exception
    hints: list[tuple[type[BaseException], str]] = [
        (known.NotFoundError, missing),
        (known.PermissionDeniedError, "ask the workspace's owner for access, or name another environment with --env"),
        (known.InvalidError, invalid),
        (known.ConnectionError, "check the network and https://status.modal.com, then try again"),
        (known.VersionError, "pip install --upgrade modal"),
        (known.FunctionTimeoutError, "try again: committed downloads are kept"),
    ]
    try:
        yield
    except known.AuthError as error:
        if "missing" in str(error).lower():
            raise _error(f"cannot {doing}: there are no Modal credentials on this machine", _TOKENS) from None
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
