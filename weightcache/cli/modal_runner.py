"""``--volume NAME``: run a command in a small CPU container on Modal, so that no GPU container waits for a download."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from weightcache.manifest import Manifest
from weightcache.modal.image import add_manifest, manifest_path

from .adopt import path_on_volume
from .command_spec import Group, Remote
from .modal_app import MOUNT, connect, in_app, open_secrets
from .output import echo
from .shared_flags import manifests_of
from .terminal import terminal_columns

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import modal

    from .command_spec import Command


def usage_problem(command: Command, options: argparse.Namespace) -> str | None:
    """Return which options cannot be combined, or ``None``."""
    if getattr(options, "dry_run", False) and getattr(options, "create", False):
        return "--dry-run cannot be combined with --create"
    if getattr(options, "volume", None) is None:
        for flag in command.flags:
            if flag.group is Group.ON_MODAL and getattr(options, flag.dest):
                return f"{flag.name} needs --volume"
    elif command.remote and options.root:
        return "--root is a directory of this machine; with --volume the root is the Volume"
    else:
        for flag in command.flags:
            if flag.remote is Remote.REFUSED and getattr(options, flag.dest):
                return f"{flag.name} cannot be combined with --volume"
    return None


def run(
    command: Command,
    options: argparse.Namespace,
    main_in_container: Callable[[modal.Volume, list[str], bool], tuple[int, str, str]],
) -> int:
    """Run a command in a container that mounts the Volume of ``options``; return its exit code.

    Args:
        command: The command.
        options: Its options, as parsed on this machine.
        main_in_container: Runs an argv in the container; returns its exit code, stdout and stderr.

    Raises:
        WeightCacheError: The manifest is invalid, or the Volume cannot be opened. No container was started.
    """
    sources = manifests_of(options)
    manifests = [Manifest.load(source) for source in sources]
    secrets = getattr(options, "secret", None) or []
    _warn_of_missing_secret(command, options, manifests, secrets)
    volume = connect(options)
    paths = [manifest_path(f"manifest-{index}") for index in range(len(sources))]
    replaced = {"root": MOUNT, "manifest": paths}
    if hasattr(options, "path"):
        replaced["path"] = path_on_volume(options.path, MOUNT)
    argv = command.container_argv(options, replaced)

    def with_manifests(image: modal.Image) -> modal.Image:
        for source, path in zip(sources, paths, strict=True):
            image = add_manifest(image, source, path)
        return image

    columns = terminal_columns(sys.stdout)  # here: while the app runs, stdout is redirected
    code, stdout, stderr = in_app(
        options,
        lambda start: start(main_in_container).remote(volume, argv, getattr(options, "quiet", False), columns),
        {main_in_container: volume},
        secrets=open_secrets(options, secrets),
        image=with_manifests,
    )
    print(stdout, end="")
    print(stderr, end="", file=sys.stderr)
    return int(code)


def _warn_of_missing_secret(
    command: Command, options: argparse.Namespace, manifests: list[Manifest], secrets: list[str]
) -> None:
    """Warn where the manifest names tokens and the container gets none. Names that are not declared are an error."""
    names = getattr(options, "names", None) or None
    selected = manifests[0].select(names) if manifests else ()
    variables = sorted({variable for checkpoint in selected for variable in checkpoint.variables})
    takes_secrets = any(flag.dest == "secret" for flag in command.flags)
    if takes_secrets and variables and not secrets:
        echo(f"no --secret is given, and the manifest names {', '.join(variables)}")
