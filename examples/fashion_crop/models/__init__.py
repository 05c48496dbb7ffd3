"""The two models, and nothing else: all that imports torch, groundingdino, sam2 and transformers is in this folder.

Each module has the same three parts: ``build`` makes the architecture without weights, ``load`` gives it the weights of
a checkpoint, and a class makes the loaded model a `Detector` or `Segmenter`.
"""

import warnings

from ._torchvision import let_torchvision_import

# What the packages do that will not work one day: their versions are pinned, and nothing is to be done about it here.
EXPECTED_WARNINGS = (
    ("Importing from timm.models.layers is deprecated", FutureWarning),
    ("`torch.cuda.amp.autocast", FutureWarning),
    ("The `device` argument is deprecated and will be removed in v5", FutureWarning),
    ("torch.meshgrid", UserWarning),
    ("`torch.jit.script` is deprecated", DeprecationWarning),
)
for message, category in EXPECTED_WARNINGS:
    warnings.filterwarnings("ignore", message, category)

let_torchvision_import()  # before anything imports it
