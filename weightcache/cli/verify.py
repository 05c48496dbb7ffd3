"""``weightcache verify``: hash every published file, and check that a key signed them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import weightcache

from .command_spec import Command
from .output import print_statuses
from .shared_flags import SIGNATURE, SIGNED_BY, signing_key, source_of
from .status import FLAGS

if TYPE_CHECKING:
    import argparse

    from weightcache._pinning.model_signature import PublicKey


def run(options: argparse.Namespace) -> int:
    """Hash the named checkpoints and print their state.

    Raises:
        WeightCacheError: A file cannot be read, or the key of ``--signed-by`` did not sign what the manifest declares.
        ValueError: The options cannot be combined.
    """
    source, names = source_of(options)
    key = signing_key(options)
    if key:
        source = _check_signatures(options, key)  # now: to hash what follows may take an hour
    statuses = weightcache.verify(source, root=options.root, only=names)
    if key:
        statuses = [_with_signer(each, key) for each in statuses]
    return print_statuses(statuses, options)


def _check_signatures(options: argparse.Namespace, key: PublicKey) -> weightcache.Manifest:
    """Check that a key signed the digests of the named checkpoints; return the manifest that was checked."""
    from weightcache._pinning.signed_pins import check_declared  # not at the top: it imports requests

    if options.tag is not None:
        raise ValueError("--signed-by cannot be combined with --tag: a tag has no URLs, and its weights are your own")
    manifest = weightcache.Manifest.load(options.manifest)
    wanted = manifest.select(options.names or None)
    if options.signature is not None and len(wanted) != 1:
        raise ValueError(f"--signature is that of one checkpoint, and {len(wanted)} are selected: name that checkpoint")
    for checkpoint in wanted:
        check_declared(checkpoint, key, options.signature)
    return manifest


def _with_signer(status: weightcache.Status, key: PublicKey) -> weightcache.Status:
    """Note the key that signed bytes that are right."""
    if status.state not in ("ready", "unverified"):
        return status
    return replace(status, detail="; ".join(filter(None, [status.detail, f"signed by {key.signer}"])))


COMMAND = Command(
    "verify",
    "hash every published file; write nothing",
    (*FLAGS, SIGNED_BY, SIGNATURE),
    run,
    remote=True,
)
