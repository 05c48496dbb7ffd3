"""What a hint may ask of the user: inside a Modal container nobody can run a command or set a variable."""

from __future__ import annotations

import os

VOLUME_FLAGS = "WEIGHTCACHE_VOLUME_FLAGS"  # set in a container of `weightcache … --volume`: the flags that name it


def in_modal_container() -> bool:
    """Whether this process runs in a Modal container, by the variables that Modal sets in each.

    ``modal.is_local()`` answers otherwise: it is true in a child process of a container.
    """
    return os.environ.get("MODAL_IS_REMOTE") == "1" or "MODAL_TASK_ID" in os.environ


def command(words: str, root: str = "", volume: object = None) -> str:
    """Return a command of this library that the user can run: in a Modal container, one to run from outside.

    Args:
        words: The verb and its arguments.
        root: The root, for machines that are no container; empty to leave it out.
        volume: The handle of the Volume, if there is one. It may know its name.
    """
    if not in_modal_container():
        return f"`weightcache {words}{f' --root {root}' if root else ''}`"
    return f"`weightcache {words} {volume_flags(volume)}`"


def volume_flags(volume: object = None) -> str:
    """Return the flags that name the Volume of this container on a command line."""
    name = getattr(volume, "name", None)
    return os.environ.get(VOLUME_FLAGS) or f"--volume {name if isinstance(name, str) and name else 'NAME'}"


def token_place(variable: str) -> str:
    """Return where the user puts a token of the Hub for this process."""
    if os.environ.get(VOLUME_FLAGS):
        return f"{variable} of a Modal Secret, which --secret NAME of the command names"
    if in_modal_container():
        return f"{variable} of a Modal Secret (secrets= of this function; with `weightcache … --volume`, --secret NAME)"
    return f"{variable} (or run `hf auth login`)"


def set_variable(variable: str) -> str:
    """Return how the user gives this process an environment variable."""
    if os.environ.get(VOLUME_FLAGS):
        return f"add --secret NAME to the command: a Modal Secret that holds {variable}"
    if in_modal_container():
        return (
            f"give this function a Modal Secret that holds {variable} (secrets=), or run "
            f"{command('ensure')[:-1]} --secret NAME` with the name of that Secret"
        )
    return f"set {variable} in the environment (on Modal: a Secret)"
