"""Which Modal Volume is mounted at a root, and whether it is the one that the caller passed."""

from __future__ import annotations

import os
from typing import Any

from weightcache._environment import in_modal_container
from weightcache.errors import VolumeError
from weightcache.manifest.validate import MODAL_VOLUMES, real_path


def mounted_volume(root: str) -> str:
    """Return the id of the Modal Volume that holds ``root``, which need not exist; empty if it is on none."""
    return _volume_at(os.path.realpath(root))


def _volume_at(real: str) -> str:
    return real[len(MODAL_VOLUMES) :].partition("/")[0] if f"{real}/".startswith(MODAL_VOLUMES) else ""


def check_mounted(root: str, volume: Any) -> None:
    """Refuse a root that is not on ``volume``: a commit would succeed, and the bytes would not be in it.

    Only what is known to be wrong is refused: in a Modal container, for a handle with a Volume's id, where the root is
    on another Volume, or on the container's own disk, or where ``volume`` is mounted at another path.

    Raises:
        VolumeError: Another Volume, or none, is mounted at the root; or ``volume`` does not exist.
    """
    if not in_modal_container() or not (wanted := _id_of(volume)):
        return
    found = mounted_volume(root)
    if found == wanted:
        return
    if found:
        if not (found.startswith("vo-") and found[3:].isalnum()):
            return  # not the id of a Volume, so this version of Modal mounts in a way that is not known here
        where = f"root {root} is on another Volume, {found}"
    elif os.path.isdir(MODAL_VOLUMES + wanted):
        where = f"root {root} is not on a Volume, and {wanted} is mounted at another path"
    elif _is_own_disk(root):
        where = f"root {root} is on the container's own disk, and {wanted} is not mounted in this container"
    else:
        return
    raise VolumeError(
        f"{where}: volume= is {_in_words(volume)}, whose commits would not take what is written to the root",
        hint="mount this Volume at the root or above it (volumes={...} of the function), "
        "or pass the mount path of this Volume as root",
        operation="mount",
    )


def check_manifest(root: str, source: object, volume: object) -> None:
    """Refuse a manifest file on a Modal Volume that is not reloaded: its old version would be read for ever.

    Args:
        root: The root.
        source: A manifest in any form; only a path can be refused.
        volume: The Volume of the root, if the caller passed one.

    Raises:
        VolumeError: No Volume was passed, or the manifest is on another one than the root.
    """
    found = _volume_at(real_path(source))
    is_elsewhere = found != mounted_volume(root)
    if not found or (volume is not None and not is_elsewhere):
        return
    if is_elsewhere:
        why, do = "that is not the Volume of the root", "keep it on the Volume of the root, and pass that as volume="
    else:
        why, do = "no volume= was given", "pass volume=, the modal.Volume that is mounted there"
    raise VolumeError(
        f"manifest {source} is on the Modal Volume {found}, and {why}: "
        "this container would not see what another one changes in it",
        hint=f"{do}; or use a tag for what moves, publish(..., tag=...) and ensure(Tag(NAME), ...); "
        "or put the manifest into the image",
        operation="reload",
    )


def _id_of(volume: Any) -> str:
    """Return the id of a Volume of Modal; empty for any other, or if Modal cannot be asked."""
    try:
        if not isinstance(getattr(volume, "object_id", None), str):  # a handle has none before its first use
            volume.hydrate()
        found = volume.object_id
    except Exception as error:  # a client raises any error, and what is not known is not refused
        if type(error).__name__ != "NotFoundError":
            return ""
        raise VolumeError(
            f"volume= is {_in_words(volume)}, which does not exist: {error}",
            hint="correct its name or its environment, or create it with create_if_missing=True; "
            "if it was deleted, deploy the app again",
            operation="mount",
        ) from error
    return found if isinstance(found, str) else ""


def _is_own_disk(root: str) -> bool:
    """Whether ``root``, or else its nearest parent that exists, is on the file system of ``/``."""
    real = os.path.realpath(root)
    while not os.path.exists(real):
        real = os.path.dirname(real)
    try:
        return os.stat(real).st_dev == os.stat("/").st_dev
    except OSError:  # only what is known to be wrong is refused
        return False


def _in_words(volume: Any) -> str:
    name, number = getattr(volume, "name", None), getattr(volume, "object_id", None)
    return f"{name or 'a Volume'} ({number})" if number else str(name or "a Volume")
