"""The flags that several commands share, each declared once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from weightcache import Tag

from .command_spec import Flag, Group, Remote

if TYPE_CHECKING:
    import argparse

    from weightcache._pinning.model_signature import PublicKey
    from weightcache.manifest import WeightSource

DEFAULT_MANIFEST = "weights.toml"
NO_ROOT = "no root: give --root DIR or set WEIGHTCACHE_ROOT"

NAMES = Flag(
    ("names",),
    "checkpoints (default: all checkpoints of the manifest)",
    Remote.SEND,
    metavar="NAME",
    nargs="*",
)
MANIFEST = Flag(
    ("-m", "--manifest"),
    "the manifest (default: ./weights.toml)",
    Remote.REPLACE,
    metavar="FILE",
    default=DEFAULT_MANIFEST,
    once=True,
    completes="file",
)
MANIFESTS = replace(
    MANIFEST,
    help="the manifest (default: ./weights.toml); repeat it for every manifest in use",
    default=None,
    once=False,
    repeat=True,
)
TAG = Flag(
    ("--tag",),
    "the version of NAME that this tag stands for; no manifest is read",
    Remote.SEND,
    metavar="TAG",
)
KEEP = Flag(
    ("--keep",),
    "how many versions prune keeps for the tag (default: as before; at first, all)",
    Remote.SEND,
    metavar="N",
    type=int,
)
ROOT = Flag(
    ("--root",),
    "the directory of the weights (default: $WEIGHTCACHE_ROOT)",
    Remote.REPLACE,
    metavar="DIR",
    completes="directory",
)
JSON = Flag(("--json",), "print the result as JSON", Remote.SEND)
QUIET = Flag(("-q", "--quiet"), "show no progress", Remote.SEND)
EXPECT = Flag(("--expect",), "refuse any checkpoint with another digest", metavar="SHA256")
PRINT = Flag(("--print",), "print the entries instead of writing them to the manifest")

SIGNED_BY = Flag(
    ("--signed-by",),
    "check that this key signed the files (PEM)",
    Remote.REFUSED,
    metavar="KEY",
    completes="file",
)
SIGNATURE = Flag(
    ("--signature",),
    "with --signed-by: the signature (default: model.sig beside the files of a mirror)",
    Remote.REFUSED,
    metavar="URL|PATH",
    completes="file",
)

VOLUME = Flag(
    ("--volume",),
    "run in a small container that mounts this Volume (default: on --root)",
    Remote.LOCAL,
    metavar="NAME",
    group=Group.ON_MODAL,
)
ENV = Flag(
    ("--env",),
    "the environment of the Volume (default: Modal's own)",
    Remote.LOCAL,
    metavar="ENVIRONMENT",
    group=Group.ON_MODAL,
)
CREATE = Flag(("--create",), "create the Volume if it does not exist", Remote.LOCAL, group=Group.ON_MODAL)
VERSION = Flag(
    ("--version",),
    "the version that the Volume has, or gets with --create",
    Remote.LOCAL,
    metavar="1|2",
    type=int,
    choices=(1, 2),
    group=Group.ON_MODAL,
)


def manifests_of(options: argparse.Namespace) -> list[str]:
    """Return the manifests that options name; empty if none is read."""
    if not hasattr(options, "manifest") or getattr(options, "tag", None) or getattr(options, "no_manifest", False):
        return []
    if options.manifest is None:
        return [DEFAULT_MANIFEST]
    return options.manifest if isinstance(options.manifest, list) else [options.manifest]


def signing_key(options: argparse.Namespace) -> PublicKey | None:
    """Return the key that ``--signed-by`` names; ``None`` without it.

    Raises:
        StorageError: It cannot be read.
        ValueError: It is not a key that can be used, or ``--signature`` is given alone.
    """
    if options.signed_by is None:
        if options.signature is not None:
            raise ValueError("--signature needs --signed-by: the key that must have signed")
        return None
    from weightcache._pinning.model_signature import PublicKey

    return PublicKey(options.signed_by)


def source_of(options: argparse.Namespace) -> tuple[WeightSource, list[str] | None]:
    """Return what options declare, a manifest or a tag, and the names to select from it; ``None`` for all.

    Raises:
        ValueError: ``--tag`` is given and not one name, or it is not the name of a tag.
    """
    if options.tag is None:
        return options.manifest, options.names or None
    if len(options.names) != 1:
        raise ValueError(f"--tag needs one NAME, the checkpoint that has the tag; got {len(options.names)}")
    return Tag(options.names[0], options.tag), None
