"""GroundingDINO (groundingdino-py 0.4.0) as a `Detector`.

Paper: Liu et al., "Grounding DINO", 2023, arXiv:2303.05499. What its package does and this does not:

- It downloads BERT's 440 MB to fill a text encoder whose every weight the checkpoint then overwrites. Here the encoder
  is built from its configuration alone, which, like the vocabulary, comes from the manifest.
- It joins the words above a threshold into a label. Here a label is one of the prompts (`fashion_crop.models.labels`).
"""

from __future__ import annotations

# Before the packages of the models: it lets torchvision be imported.
from fashion_crop.models import _packages  # noqa: F401

# isort: split
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from groundingdino.models import build_model
from groundingdino.models.GroundingDINO.backbone import backbone
from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
from groundingdino.util import get_tokenlizer
from groundingdino.util.slconfig import SLConfig
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from fashion_crop.models.detection import Box, Detection
from fashion_crop.models.labels import caption_of
from weightcache.torch import assign_into

from ._checkpoint import weights_in
from ._replaced import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from weightcache import Prefetch

Size = Literal["full", "stand-in"]

# In the published checkpoint and not in the model: a table of the training, and positions that BERT counts itself.
NOT_NEEDED = ("label_enc.weight", "bert.embeddings.position_ids")

SIDES = {"full": (800, 1333), "stand-in": (192, 320)}  # pixels: the shorter side, and the longer one at most
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue

_STAND_IN = {"enc_layers": 1, "dec_layers": 1, "dim_feedforward": 64, "num_queries": 20}


def build(text_encoder: Path, size: Size = "full") -> torch.nn.Module:
    """Make the architecture GroundingDINO-SwinT-OGC, without weights.

    Args:
        text_encoder: A directory with BERT's ``config.json``, ``tokenizer_config.json``, ``tokenizer.json`` and
            ``vocab.txt``. Nothing is looked for elsewhere.
        size: ``"stand-in"`` for the same architecture with fewer and smaller layers.
    """
    # The package asks for these two by name, and would have them look on the Hub.
    without_hub = [
        (get_tokenlizer, "get_tokenlizer", _tokenizer),
        (get_tokenlizer, "get_pretrained_language_model", _language_model),
    ]
    with of_size(size), replaced(without_hub):
        return build_model(config(text_encoder, size)).eval()


def config(text_encoder: Path, size: Size = "full") -> SLConfig:
    """Return the package's own configuration of that architecture, for a CPU, for inference."""
    settings = SLConfig.fromfile(str(Path(backbone.__file__).parents[3] / "config" / "GroundingDINO_SwinT_OGC.py"))
    settings.device = "cpu"
    settings.text_encoder_type = str(text_encoder)
    settings.use_checkpoint = settings.use_transformer_ckpt = False  # they save memory in training, and cost time here
    for name, value in (_STAND_IN if size == "stand-in" else {}).items():
        setattr(settings, name, value)
    return settings


@contextmanager
def of_size(size: Size) -> Iterator[None]:
    """Let what is built meanwhile have a backbone of that size, which the configuration does not contain."""
    with replaced([(backbone, "build_swin_transformer", _small_swin)] if size == "stand-in" else []):
        yield


def load(model: torch.nn.Module, checkpoint: Path, *, prefetched: Prefetch | None = None) -> None:
    """Give the model the weights of a checkpoint as its authors publish it.

    Raises:
        LoadError: The file is no such checkpoint; every name that is missing or too many is in its ``problems``.
    """
    weights = weights_in(checkpoint, prefetched=prefetched)
    assign_into(model, weights, strip_prefix="module.", allow_unexpected=NOT_NEEDED)


class GroundingDino:
    """A loaded model as a `Detector`. It may be called by several threads, and serves one at a time."""

    def __init__(self, model: torch.nn.Module, *, size: Size = "full", device: str = "cpu") -> None:
        self._model: Any = model.to(device)
        self._device = device
        self._sides = SIDES[size]
        # A tokenizer that pads in one thread and not in another fails with "Already borrowed".
        self._one_photo = threading.Lock()

    def to(self, device: str) -> None:
        """Move the model to a device, as torch names it."""
        with self._one_photo:
            self._model.to(device)
            self._device = device

    def detect(
        self, pixels: NDArray[np.uint8], prompts: Sequence[str], *, box_threshold: float, text_threshold: float
    ) -> list[Detection]:
        """See `Detector`. The score of a box is that of its best token, as in the package's own ``predict``."""
        image = _prepared(pixels, *self._sides)
        with self._one_photo, torch.inference_mode():
            caption = caption_of(prompts, self._model.tokenizer.tokenize)
            found = self._model(image.to(self._device), captions=[caption.text])
        scores = found["pred_logits"][0].sigmoid().float().cpu().numpy()
        boxes = found["pred_boxes"][0].float().cpu().numpy()
        best = scores.max(axis=1)
        indices, text_scores = caption.best(scores)
        height, width = pixels.shape[:2]
        return [
            Detection(caption.prompts[indices[each]], float(best[each]), _corners(boxes[each], width, height))
            for each in np.flatnonzero((best > box_threshold) & (text_scores > text_threshold))
        ]


def _prepared(pixels: NDArray[np.uint8], shorter: int, longer: int) -> torch.Tensor:
    """Scale and normalise as in training; return batch, channel, row, column."""
    height, width = pixels.shape[:2]
    side = min(shorter, round(longer * min(width, height) / max(width, height)))
    side = max(side, 1)  # of a strip that is one pixel high
    size = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
    scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    normal = (scaled - np.float32(MEAN)) / np.float32(SPREAD)
    return torch.from_numpy(normal.transpose(2, 0, 1)[None].copy())


def _corners(box: NDArray[np.floating], width: int, height: int) -> Box:
    """From centre and size, as shares of the image, to pixels within it."""
    x, y, w, h = (float(each) for each in box)
    left, right = (min(max(each, 0.0), 1.0) * width for each in (x - w / 2, x + w / 2))
    top, bottom = (min(max(each, 0.0), 1.0) * height for each in (y - h / 2, y + h / 2))
    return Box(left, top, right, bottom)


def _tokenizer(place: str) -> Any:
    return BertTokenizerFast.from_pretrained(place, local_files_only=True)


def _language_model(place: str) -> Any:
    return BertModel(BertConfig.from_json_file(str(Path(place) / "config.json")))


def _small_swin(_name: str, pretrain_img_size: int, **options: Any) -> torch.nn.Module:
    return SwinTransformer(
        pretrain_img_size=pretrain_img_size,
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        **options,
    )
