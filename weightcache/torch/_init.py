"""`skip_init`: modules without the random numbers that a checkpoint replaces anyway."""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._torch import import_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._random import SkipRandom

# These draw into memory of their own and copy from it. The other functions of torch.nn.init draw into the parameter
# itself, which `SkipRandom` sees.
_DRAW_ELSEWHERE = ("orthogonal_", "sparse_", "trunc_normal_")

_building = threading.RLock()  # held by the thread that is inside `skip_init`


@contextmanager
def skip_init() -> Iterator[None]:
    """Build modules without filling their parameters with random numbers.

    For modules whose parameters are all replaced afterwards, as `assign_into` makes sure of. Until then such a
    parameter holds whatever was in its memory. Everything else is computed as always: constants, zeros and ones, what
    is copied or calculated, and buffers, also random ones, since no file may hold them. Skipped are the in-place random
    methods of a tensor (``uniform_``, ``normal_`` …) and all of ``torch.nn.init`` that draws, for tensors that share
    memory with an ``nn.Parameter``. Parameters made from random tensors, as ``nn.Parameter(torch.randn(…))``, are
    drawn.

    Generators advance by what was drawn and not by what was skipped: numbers drawn after the block, or by a buffer
    in it, are others than after a plain build with the same seed. Seed after the block for numbers that repeat.

    May be nested. Other threads build modules as always. On leaving, also by an exception, everything is as before.

    Raises:
        RuntimeError: Another thread is inside `skip_init`; functions of ``torch.nn.init`` are replaced meanwhile.
        ImportError: PyTorch is not installed.

    Example:
        >>> with skip_init():  # doctest: +SKIP
        ...     model = build_sam2("sam2_hiera_l.yaml")
        >>> assign_into(model, load_state_dict(weights["sam2"])["model"])  # doctest: +SKIP
    """
    torch = import_torch()
    from ._random import SkipRandom

    if not _building.acquire(blocking=False):
        raise RuntimeError("skip_init: another thread is inside it; build one module after the other")
    init, skipping = torch.nn.init, SkipRandom()
    originals = {name: getattr(init, name) for name in _DRAW_ELSEWHERE}
    try:
        for name, original in originals.items():
            setattr(init, name, _unless_skipped(original, skipping, threading.get_ident()))
        with skipping:
            yield
    finally:
        for name, original in originals.items():
            setattr(init, name, original)
        _building.release()


def _unless_skipped(original: Callable[..., Any], skipping: SkipRandom, builder: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def fill(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == builder and skipping.owns(tensor):
            return tensor
        return original(tensor, *args, **kwargs)

    return fill
