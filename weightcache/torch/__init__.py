"""From a file of weights to a module that has them, without a copy and without running what the file says.

::

    from weightcache.torch import assign_into, load_state_dict, skip_init

    with skip_init():
        model = build_sam2("sam2_hiera_l.yaml")
    assign_into(model, load_state_dict(weights["sam2"])["model"])

Each of the three works alone. The results are those of the plain way, bit for bit: ``torch.load(path,
weights_only=True)``, building with random numbers, and ``model.load_state_dict(...)``. Importing this imports neither
PyTorch nor safetensors; the first call does.
"""

from __future__ import annotations

from ._assign import assign_into
from ._init import skip_init
from ._load import load_state_dict

__all__ = ["assign_into", "load_state_dict", "skip_init"]
