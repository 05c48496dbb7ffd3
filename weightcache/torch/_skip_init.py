"""`skip_init`: build modules without the random initialization that a checkpoint replaces."""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weightcache._spans import span

from ._lazy_imports import import_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._skip_random_fills import SkipRandom

# These fill a temporary tensor and copy it. The other functions of torch.nn.init fill the parameter itself, which
# `SkipRandom` intercepts.
_USE_TEMPORARY = ("orthogonal_", "sparse_", "trunc_normal_")

_building = threading.RLock()  # held by the thread that is inside `skip_init`


@contextmanager
def skip_init() -> Iterator[None]:
    """Build modules without filling their parameters with random numbers.

    Use it for modules whose parameters are all replaced afterwards; `assign_into` checks that. Until then a parameter
    contains arbitrary memory. Skipped are the in-place random methods of tensors (``uniform_``, ``normal_`` …) and the
    random functions of ``torch.nn.init``, for tensors that share memory with an ``nn.Parameter``. All else runs as
    usual: constants, copies, calculations, buffers (a file need not contain them), and parameters made from random
    tensors, such as ``nn.Parameter(torch.randn(…))``.

    Skipped calls do not advance random generators. So random numbers after the block, or in its buffers, differ from
    those of a plain build with the same seed. Set the seed after the block if you need repeatable numbers.

    Calls may be nested. Other threads build modules as usual. The end of the block restores everything, also after an
    exception.

    Raises:
        RuntimeError: Another thread is inside `skip_init`, which replaces functions of ``torch.nn.init``.
        ImportError: PyTorch is not installed.

    Example:
        >>> with skip_init():  # doctest: +SKIP
        ...     model = build_sam2("sam2_hiera_l.yaml")
        >>> assign_into(model, load_state_dict(weights["sam2"])["model"])  # doctest: +SKIP
    """
    torch = import_torch()
    from ._skip_random_fills import SkipRandom

    if not _building.acquire(blocking=False):
        raise RuntimeError("another thread is inside skip_init; build modules one after the other")
    init, skipping = torch.nn.init, SkipRandom()
    originals = {name: getattr(init, name) for name in _USE_TEMPORARY}
    try:
        for name, original in originals.items():
            setattr(init, name, _skipping(original, skipping, threading.get_ident()))
        with span("build"), skipping:
            yield
    finally:
        for name, original in originals.items():
            setattr(init, name, original)
        _building.release()


def _skipping(original: Callable[..., Any], skipping: SkipRandom, builder: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def fill(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == builder and skipping.owns(tensor):
            return tensor
        return original(tensor, *args, **kwargs)

    return fill
