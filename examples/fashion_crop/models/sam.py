"""SAM 2 (sam2 1.1.0) as a `Segmenter`.

Paper: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024, arXiv:2408.00714.
"""

from __future__ import annotations

# Before the packages of the models: it lets torchvision be imported.
from fashion_crop.models import _packages  # noqa: F401

# isort: split
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor

from fashion_crop.models.detection import CancelledError, never_cancelled
from weightcache.torch import assign_into

from ._checkpoint import weights_in
from ._replaced import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from fashion_crop.models.detection import Box
    from weightcache import Prefetch

    from .grounding_dino import Size

VARIANTS = {"large": "l", "base-plus": "b+", "small": "s", "tiny": "t"}  # each with what the package calls it
AT_ONCE = 4  # boxes: each takes 8 bytes a pixel of the photo while its mask is enlarged

_STAND_IN = [
    f"++model.{name}"
    for name in (
        "image_size=128",
        "image_encoder.trunk.embed_dim=8",
        "image_encoder.trunk.num_heads=1",
        "image_encoder.trunk.stages=[1,1,2,1]",
        "image_encoder.trunk.global_att_blocks=[3]",
        "image_encoder.trunk.window_spec=[4,4,2,2]",
        "image_encoder.trunk.window_pos_embed_bkg_spatial_size=[4,4]",
        "image_encoder.neck.backbone_channel_list=[64,32,16,8]",
        "memory_attention.num_layers=1",
        "memory_attention.layer.dim_feedforward=64",
        "memory_attention.layer.self_attention.feat_sizes=[8,8]",
        "memory_attention.layer.cross_attention.feat_sizes=[8,8]",
    )
]


def build(variant: str = "large", size: Size = "full") -> torch.nn.Module:
    """Make the architecture of a published checkpoint, without weights.

    Args:
        variant: One of `VARIANTS`.
        size: ``"stand-in"`` for an architecture with fewer and smaller layers, the same one for every variant.

    Raises:
        ValueError: There is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"there is no segmenter {variant!r}: choose one of {', '.join(VARIANTS)}")
    if size == "stand-in":
        return build_sam2(_config("tiny"), None, device="cpu", hydra_overrides_extra=_STAND_IN)
    return build_sam2(_config(variant), None, device="cpu")


def _config(variant: str) -> str:
    return f"configs/sam2/sam2_hiera_{VARIANTS[variant]}.yaml"


def load(model: torch.nn.Module, checkpoint: Path, *, prefetched: Prefetch | None = None) -> None:
    """Give the model the weights of a checkpoint as its authors publish it.

    Raises:
        LoadError: The file is no such checkpoint; every name that is missing or too many is in its ``problems``.
    """
    assign_into(model, weights_in(checkpoint, prefetched=prefetched))


class Sam2:
    """A loaded model as a `Segmenter`. It may be called by several threads, and serves one at a time."""

    def __init__(self, model: torch.nn.Module, *, device: str = "cpu") -> None:
        # It would compile two steps of its preparation, for half of the time that loading the weights takes.
        with replaced([(torch.jit, "script", lambda module: module)]):
            self._predictor: Any = SAM2ImagePredictor(model.to(device))
        side = self._predictor.model.image_size
        # The package has the feature maps of its own image size written down, whatever the model's is.
        self._predictor._bb_feat_sizes = [(side // each, side // each) for each in (4, 8, 16)]  # noqa: SLF001
        self._one_photo = threading.Lock()  # the predictor keeps the photo's embedding

    def to(self, device: str) -> None:
        """Move the model to a device, as torch names it."""
        with self._one_photo:
            self._predictor.model.to(device)

    def segment(
        self, pixels: NDArray[np.uint8], boxes: Sequence[Box], *, cancelled: Callable[[], bool] = never_cancelled
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """See `Segmenter`. The photo is embedded once for all boxes."""
        pixels = np.require(pixels, requirements="W")  # torch warns of memory that it may not write to
        prompts = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        masks = np.empty((len(prompts), *pixels.shape[:2]), dtype=np.bool_)
        scores = np.empty(len(prompts), dtype=np.float32)
        with self._one_photo, torch.inference_mode(), self._half():
            self._predictor.set_image(pixels)
            try:
                for start in range(0, len(prompts), AT_ONCE):
                    if cancelled():
                        raise CancelledError
                    part = slice(start, start + AT_ONCE)
                    found, quality, _ = self._predictor.predict(box=prompts[part], multimask_output=False)
                    masks[part] = found.reshape(-1, *pixels.shape[:2]) > 0
                    scores[part] = quality.reshape(-1)
            finally:
                self._predictor.reset_predictor()  # an embedding is 20 MB or more, and of somebody's photo
        return masks, scores

    def _half(self) -> AbstractContextManager[Any]:
        on_gpu = self._predictor.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()
