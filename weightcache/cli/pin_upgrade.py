"""``weightcache pin --upgrade``: pin again what is pinned, and show what changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache._pinning.upgrade import is_change, newest

from .output import print_json, print_lines
from .pin_staging import open_staging
from .pinning import check_expected, complete_draft, require_one, to_json
from .shared_flags import signing_key
from .toml_edit import require_tomlkit

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from weightcache._pinning.model_signature import PublicKey
    from weightcache._pinning.unpinned_entries import Draft, Pin

    from .pin_staging import Staging
    from .toml_edit import ManifestFile


class _Upgrade(NamedTuple):
    """An entry as it is declared, and as it would be."""

    before: Draft
    after: Draft
    is_change: bool

    @property
    def result(self) -> Draft:
        """What the manifest has afterwards."""
        return self.after if self.is_change else self.before


def upgrade(file: ManifestFile, wanted: Sequence[Draft], options: argparse.Namespace) -> int:
    """Pin entries again, or check whether that would change them; print old and new digests and sizes.

    Returns:
        1 if ``--check`` is given and an entry would change, otherwise 0.

    Raises:
        WeightCacheError: A mirror does not deliver, or two mirrors disagree. Nothing was changed.
        ValueError: tomlkit or huggingface_hub is needed and not installed.
    """
    require_one(wanted, options)
    key = signing_key(options)
    if options.signature is not None and len(wanted) != 1:
        raise ValueError("--signature is that of one checkpoint: name that checkpoint")
    writes = not (options.check or options.print)
    if writes:
        require_tomlkit()  # now: the downloads that follow may take an hour
    with open_staging(None if options.check else options.root) as staging:
        found = [_upgraded(draft, staging, options, key) for draft in wanted]
        changed = [each for each in found if each.is_change]
        if changed and writes:
            file.complete([each.after.checkpoint() for each in changed])
        if staging is not None:
            staging.publish([each.result.checkpoint() for each in found], quiet=options.quiet)
    if options.json:
        print_json(options, {"checkpoints": [_to_json(each) for each in found]})
    elif options.print:
        print("\n".join(f"{each.after.checkpoint()}\n" for each in changed), end="")
    else:
        print_lines("\n".join(line for each in found for line in _lines(each, check=options.check)))
    return 1 if options.check and changed else 0


def _upgraded(draft: Draft, staging: Staging | None, options: argparse.Namespace, key: PublicKey | None) -> _Upgrade:
    if draft.signed_by and not key:
        problem = f"{draft.signed_by} signed it: to upgrade it, give that key to --signed-by"
        if draft.name in options.names:
            raise ValueError(f"{draft.name}: {problem}")
        draft.warn(f"not upgraded, because {problem}")
    if not draft.urls or (draft.signed_by and not key):  # without URLs: weights of your own, which `publish` declares
        check_expected(draft, options.expect)
        return _Upgrade(draft, draft, is_change=False)
    made = newest(draft, options.to)
    if key and (draft.signed_by or draft.name in options.names):  # no signature is needed of entries that nobody named
        from weightcache._pinning.signed_pins import check_signed, leave_out_unsigned, read_signature

        signed = read_signature(made, key, options.signature)
        leave_out_unsigned(made, signed, draft.pins)
        complete_draft(made, staging, options)
        check_signed(made, signed)
    else:
        complete_draft(made, staging, options)
    check_expected(made, options.expect)
    return _Upgrade(draft, made, is_change(draft, made, moves=options.to is not None))


def _to_json(each: _Upgrade) -> dict[str, Any]:
    old = None if each.before.missing_pins() else each.before.checkpoint().digest
    was = {path: {"sha256": pin.sha256, "size": pin.size} for path, pin in each.before.pins.items() if pin.sha256}
    return {**to_json(each.result, changed=each.is_change), "old_digest": old, "old_files": was}


def _lines(each: _Upgrade, *, check: bool) -> Iterator[str]:
    """Yield what changes, old → new."""
    name, after = each.before.name, each.after
    if not each.is_change:
        newer = [url for url in after.urls if url not in each.before.urls]
        yield f"{name}: nothing changed" + (f"; {newer[0]} has the same files" if newer else "")
        return
    old = "unpinned" if each.before.missing_pins() else each.before.checkpoint().digest
    yield f"{name}: {'would change' if check else 'changed'}\n  {old} → {after.checkpoint().digest}"
    if each.before.signed_by != after.signed_by:
        yield f"  signed by {each.before.signed_by or 'nobody'} → {after.signed_by}"
    for one, other in zip(each.before.urls, after.urls, strict=True):
        if one != other:
            yield f"  {one} → {other}"
    for path in sorted({*each.before.pins, *after.pins}):
        one_pin, other_pin = each.before.pins.get(path), after.pins.get(path)
        if _pinned(one_pin) != _pinned(other_pin):
            yield f"  {path}\n    {_pinned(one_pin)} → {_pinned(other_pin)}"
            if other_pin is not None:
                yield f"    {other_pin.evidence}"


def _pinned(pin: Pin | None) -> str:
    if pin is None:
        return "not there"
    size = "unknown length" if pin.size is None else f"{pin.size:,} bytes"
    return f"{pin.sha256} ({size})" if pin.sha256 else "unpinned"
