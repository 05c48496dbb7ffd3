"""The two models as the examples of their packages load and call them: what this app is measured and tested against.

BERT's 440 MB are read to be overwritten, both models are filled with random numbers, and every weight is read by
``torch.load`` and then copied.
"""

from __future__ import annotations

# Before the packages of the models: it lets torchvision be imported.
from fashion_crop.models import _packages  # noqa: F401

# isort: split
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from groundingdino.datasets import transforms
from groundingdino.models import build_model
from groundingdino.util import box_ops
from groundingdino.util.misc import clean_state_dict
from PIL import Image
from sam2.build_sam import _load_checkpoint
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import BertConfig, BertModel

from fashion_crop.models import grounding_dino, sam

# For drawing, which `predict` does not do; requirements.txt does without it.
sys.modules.setdefault("supervision", SimpleNamespace(Detections=object))  # type: ignore[arg-type]
from groundingdino.util.inference import predict  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fashion_crop.models.grounding_dino import Size


def fill_text_encoder(text_encoder: Path, folder: Path) -> None:
    """Write BERT's directory as it is on the Hub: what ``text_encoder`` has, and weights (random numbers)."""
    folder.mkdir()
    for file in text_encoder.iterdir():
        shutil.copy(file, folder)
    BertModel(BertConfig.from_json_file(folder / "config.json")).save_pretrained(folder)


def build_detector(text_encoder: Path, size: Size = "full") -> Any:
    """Make GroundingDINO as ``groundingdino.util.inference.load_model`` does.

    Args:
        text_encoder: BERT's directory, with ``model.safetensors`` too.
        size: As in `grounding_dino.build`.
    """
    with grounding_dino.of_size(size):
        return build_model(grounding_dino.config(text_encoder, size))


def load_detector(model: Any, checkpoint: Path) -> Any:
    """Copy the weights into it, as the same function does; return what was missing and too many, which it ignores."""
    loaded = torch.load(checkpoint, map_location="cpu")
    left = model.load_state_dict(clean_state_dict(loaded["model"]), strict=False)
    model.eval()
    return left


def build_segmenter(size: Size = "full") -> Any:
    """Make SAM 2; there is but one way."""
    return sam.build(size=size)


def load_segmenter(model: Any, checkpoint: Path) -> SAM2ImagePredictor:
    """Copy the weights into it, as ``build_sam2`` does."""
    _load_checkpoint(model, str(checkpoint))
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(model.image_size // each,) * 2 for each in (4, 8, 16)]  # noqa: SLF001 (see sam.Sam2)
    return predictor


def detect(
    model: Any,
    pixels: NDArray[np.uint8],
    prompts: Sequence[str],
    *,
    box_threshold: float,
    text_threshold: float,
    size: Size = "full",
) -> tuple[NDArray[np.floating], NDArray[np.floating], list[str]]:
    """Call ``groundingdino.util.inference.predict``: boxes in pixels within the image, scores, and phrases."""
    image = prepared(pixels, *grounding_dino.SIDES[size])
    caption = " . ".join(prompts) + " ."
    boxes, scores, phrases = predict(model, image, caption, box_threshold, text_threshold, device="cpu")
    height, width = pixels.shape[:2]
    corners = np.clip(box_ops.box_cxcywh_to_xyxy(boxes).numpy(), 0, 1) * [width, height, width, height]
    return corners, scores.numpy(), phrases


def prepared(pixels: NDArray[np.uint8], shorter: int, longer: int) -> torch.Tensor:
    """Scale and normalise as ``groundingdino.util.inference.load_image`` does."""
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.RandomResize([shorter], max_size=longer), transforms.ToTensor(), normalize]
    return transforms.Compose(steps)(Image.fromarray(pixels), None)[0]


def segment(
    predictor: SAM2ImagePredictor, pixels: NDArray[np.uint8], boxes: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Call the predictor as its notebook does; masks, boxes by height by width, and their qualities."""
    with torch.inference_mode():
        predictor.set_image(pixels)
        masks, qualities, _ = predictor.predict(box=np.asarray(boxes), multimask_output=False)
    return masks.reshape(-1, *pixels.shape[:2]) > 0, qualities.reshape(-1)
