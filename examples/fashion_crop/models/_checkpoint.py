"""Both projects publish their weights one level down in a file of ``torch.save``, under ``model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightcache import LoadError
from weightcache.torch import load_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from weightcache import Prefetch


def weights_in(checkpoint: Path, *, prefetched: Prefetch | None = None) -> Mapping[str, Any]:
    """Return name → tensor of a checkpoint as its authors publish it, without a copy.

    Raises:
        LoadError: The file is damaged, needs code to be run, or has no weights at that place.
    """
    loaded = load_state_dict(checkpoint, prefetched=prefetched)
    weights = loaded.get("model")
    if not isinstance(weights, dict):
        found = ", ".join(sorted(map(str, loaded))[:5]) or "nothing"
        problem = f"has no weights under 'model'; at its top level are: {found}"
        raise LoadError(str(checkpoint), [problem], hint="give the checkpoint that the manifest of this example names")
    return weights
