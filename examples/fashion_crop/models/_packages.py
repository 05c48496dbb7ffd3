"""What comes before the packages of the models: import this module before them.

It lets torchvision be imported beside a torch for the CPU.

PyPI's torchvision for Linux is linked to CUDA. Beside a torch without CUDA its compiled part does not load, and then
``import torchvision`` fails at the first operator that it describes and does not have. Neither model calls one of those
operators, so it is enough that they are declared. Where both packages are of one kind this does nothing.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import torch

# What the packages do that will not work one day: their versions are pinned, and nothing is to be done about it here.
EXPECTED_WARNINGS = (
    ("Importing from timm.models.layers is deprecated", FutureWarning),
    ("`torch.cuda.amp.autocast", FutureWarning),
    ("The `device` argument is deprecated and will be removed in v5", FutureWarning),
    ("torch.meshgrid", UserWarning),
    ("`torch.jit.script` is deprecated", DeprecationWarning),
)
_declared: list[Any] = []  # torch forgets what was declared when this is collected


def let_torchvision_import() -> None:
    """Declare what ``import torchvision`` looks for, if its own library cannot be loaded here."""
    found = importlib.util.find_spec("torchvision")
    if torch.version.cuda or _declared or found is None or found.origin is None:
        return
    version = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    if not re.search(r"__version__ = '[^']*\+cu", version):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


for message, category in EXPECTED_WARNINGS:
    warnings.filterwarnings("ignore", message, category)
let_torchvision_import()
