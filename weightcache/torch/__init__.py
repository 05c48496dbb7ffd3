"""Load a file of weights into a module, without a copy and without running code from the file.

::

    from weightcache.torch import assign_into, load_state_dict, skip_init

    with skip_init():
        model = build_sam2("sam2_hiera_l.yaml")
    assign_into(model, load_state_dict(weights["sam2"])["model"])

Each function can be used alone. The results equal, bit for bit, those of ``torch.load(path, weights_only=True)``, a
build with random numbers and ``model.load_state_dict(...)``. Importing this package does not import PyTorch or
safetensors; the first call does.
"""

from __future__ import annotations

from ._assign import assign_into
from ._skip_init import skip_init
from ._state_dict import iter_tensors, load_state_dict

__all__ = ["assign_into", "iter_tensors", "load_state_dict", "skip_init"]
