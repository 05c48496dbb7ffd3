"""Stand-in weights: the real architectures with random numbers for weights, saved as checkpoints.

They come by the very same way as the real ones: a manifest, `ensure`, the same loading. What they find means nothing.
At test size they take seconds; at full size they have the shapes, names and bytes of the published ones.

    python -m fashion_crop.benchmarks.stand_ins [--size full] FOLDER
"""

from __future__ import annotations

# Before the packages of the models: it lets torchvision be imported.
from fashion_crop.models import _packages  # noqa: F401

# isort: split
import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BertTokenizerFast

from fashion_crop.models import grounding_dino, sam
from weightcache import publish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fashion_crop.models.grounding_dino import Size

WORDS = [
    *("shirt", "jacket", "coat", "dress", "skirt", "pants", "shorts", "shoes", "hat", "bag", "scarf", "belt", "person"),
    *("top", "jeans", "shoe", "the", "of", "and", "with", "in", "red", "blue", "green", "white", "black"),
]
_BERT = {  # its vocabulary, layers and widths; those of the full size are bert-base-uncased's
    "stand-in": {
        "vocab_size": 1200,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    },
    "full": {
        "vocab_size": 30522,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
_FILES = {  # by checkpoint; the stand-ins of the two segmenters have one small architecture and other numbers
    "stand-in": {
        "groundingdino": "groundingdino_stand_in.pth",
        "sam2-large": "sam2_large_stand_in.pt",
        "sam2-tiny": "sam2_tiny_stand_in.pt",
    },
    "full": {
        "groundingdino": "groundingdino_swint_ogc.pth",
        "sam2-large": "sam2_hiera_large.pt",
        "sam2-tiny": "sam2_hiera_tiny.pt",
    },
}
_SEED = 3  # one with which several prompts are found


def make_stand_ins(folder: Path, url: str | None = None, *, size: Size = "stand-in") -> Path:
    """Write the stand-ins and a manifest of them; the checkpoints are the same bytes at every call.

    Args:
        folder: Where they go: ``weights.toml``, below ``files/`` what it names, and ``published/``, a root that has it.
        url: Where ``files/`` will be found, as in ``"http://127.0.0.1:9000"``; ``None`` for where it is.
        size: ``"full"`` for 1.7 GB, as the published ones.

    Returns:
        The manifest, with names of checkpoints that ``fashion_crop/weights.toml`` has too.
    """
    folder = folder.resolve()
    places = _save(folder / "files", size)
    url = url or (folder / "files").as_uri()
    entries = []
    for name, place in places.items():
        checkpoint = publish(place, name=name, root=folder / "published")  # it knows what a manifest must say
        entries.append(str(checkpoint).replace("urls = []", f'urls = ["{url}/{place.name}"]'))
    manifest = folder / "weights.toml"
    manifest.write_text("\n\n".join(["version = 1", *entries]) + "\n", encoding="utf-8")
    return manifest


def _save(folder: Path, size: Size) -> Mapping[str, Path]:
    """Write the checkpoints in the layouts that their authors publish; return where each one is."""
    text_encoder = folder / "bert-base-uncased"
    text_encoder.mkdir(parents=True, exist_ok=True)
    _save_text_encoder(text_encoder, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        detector = grounding_dino.build(text_encoder, size)
        segmenters = {variant: sam.build(variant, size) for variant in ("large", "tiny")}
        _spread_scores(detector)
    weights = {f"module.{name}": value for name, value in detector.state_dict().items()}
    # The published checkpoint has these two, and the model has no place for them: loading must know them.
    weights["module.label_enc.weight"] = torch.zeros(2001, 256)
    weights["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    places = {name: folder / file for name, file in _FILES[size].items()}
    torch.save({"model": weights}, places["groundingdino"])
    for variant, segmenter in segmenters.items():
        torch.save({"model": segmenter.state_dict()}, places[f"sam2-{variant}"])
    return {**places, "bert-base-uncased": text_encoder}


def _spread_scores(detector: Any) -> None:
    """Let thresholds and boxes mean something: untouched, every score is 0 or 1, and every box a few pixels wide.

    A score is the sigmoid of a query times a token, both normalised.
    """
    query, token = detector.transformer.decoder.norm, detector.transformer.encoder.text_layers[-1].norm2
    last = detector.bbox_embed[0].layers[-1]
    with torch.no_grad():
        query.weight.mul_(0.05)  # the spread of scores
        query.bias[0], token.bias[0] = -0.3, 4.0  # their product moves all scores, so that 0.35 parts them
        last.weight.normal_(std=0.2)  # the spread of boxes
        last.bias[2:] = 1.5  # their width and height


def _save_text_encoder(folder: Path, size: Size) -> None:
    """Write what BERT's directory has but the weights."""
    config = {"model_type": "bert", "max_position_embeddings": 512, "type_vocab_size": 2, **_BERT[size]}
    (folder / "vocab.txt").write_text("\n".join(_vocabulary(config["vocab_size"])) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _vocabulary(count: int) -> list[str]:
    """Return so many tokens, the special ones where BERT has them."""
    rows = [f"[unused{number}]" for number in range(count)]
    rows[0], rows[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    known = [*characters, *(f"##{each}" for each in characters if each.isalnum()), *WORDS]
    rows[104 : 104 + len(known)] = known
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashion_crop.benchmarks.stand_ins", description="Make stand-in weights."
    )
    parser.add_argument("--size", choices=list(_FILES), default="stand-in", help="default: %(default)s")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    print(make_stand_ins(arguments.folder, size=arguments.size))


if __name__ == "__main__":
    main()
