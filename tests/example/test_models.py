"""The two models: they find what the packages' own predictors find, and take only the weights that are theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import groundingdino.models.GroundingDINO.backbone.backbone as swin
import numpy as np
import pytest
import torch
from groundingdino.util import get_tokenlizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import BertConfig

from fashion_crop.benchmarks import baseline
from fashion_crop.benchmarks.stand_ins import make_stand_ins
from fashion_crop.models import _packages, grounding_dino, sam
from fashion_crop.models.detection import Box, CancelledError
from fashion_crop.models.labels import PromptsError
from fashion_crop.models.pipeline import GARMENTS
from weightcache import LoadError, Manifest
from weightcache.torch import skip_init

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from conftest import StandIns

REAL = Path(grounding_dino.__file__).parents[1] / "weights.toml"


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector(stand_ins: StandIns) -> grounding_dino.GroundingDino:
    with skip_init():
        model = grounding_dino.build(stand_ins.text_encoder, "stand-in")
    grounding_dino.load(model, stand_ins.detector)
    return grounding_dino.GroundingDino(model, size="stand-in")


@pytest.fixture(scope="module")
def segmenter(stand_ins: StandIns) -> sam.Sam2:
    with skip_init():
        model = sam.build(size="stand-in")
    sam.load(model, stand_ins.segmenter)
    return sam.Sam2(model)


# The packages' own way.


@pytest.fixture(scope="module")
def package_detector(stand_ins: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Built with random numbers and BERT's weights from a file, loaded by `torch.load` with a copy."""
    bert = tmp_path_factory.mktemp("bert") / "with-weights"
    baseline.fill_text_encoder(stand_ins.text_encoder, bert)
    model = baseline.build_detector(bert, "stand-in")
    left = baseline.load_detector(model, stand_ins.detector)
    assert left.missing_keys == []
    assert set(left.unexpected_keys) == set(grounding_dino.NOT_NEEDED)
    return model


@pytest.fixture(scope="module")
def package_segmenter(stand_ins: StandIns) -> SAM2ImagePredictor:
    """Built and loaded, strictly, by the package."""
    return baseline.load_segmenter(baseline.build_segmenter("stand-in"), stand_ins.segmenter)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 300), (64, 64), (200, 1999)])
@pytest.mark.parametrize("thresholds", [(0.35, 0.25), (0.5, 0.5), (0.0, 0.0)])
def test_detections_are_those_of_the_package(
    height: int, width: int, thresholds: tuple[float, float], detector: Any, package_detector: Any
) -> None:
    pixels = noise(height, width)
    prompts = [garment for garment in GARMENTS if garment != "t-shirt"]  # of which the package may say "shirt"
    asked = dict(zip(("box_threshold", "text_threshold"), thresholds, strict=True))
    boxes, scores, phrases = baseline.detect(package_detector, pixels, prompts, **asked, size="stand-in")

    found = detector.detect(pixels, prompts, **asked)
    kept = [each for each, phrase in enumerate(phrases) if set(prompts) & {*phrase.split()}]  # not "", "[SEP]"
    assert len(found) == len(kept) > 0
    np.testing.assert_allclose([each.score for each in found], scores[kept], atol=1e-5)
    np.testing.assert_allclose([each.box for each in found], boxes[kept], atol=1e-2)
    for each, number in zip(found, kept, strict=True):
        assert each.label in phrases[number].split()  # which are all words above the threshold


@pytest.mark.parametrize("count", [1, 2, 19])
@pytest.mark.parametrize(("height", "width"), [(300, 200), (128, 128), (1, 40)])
def test_masks_are_those_of_the_package(
    height: int, width: int, count: int, segmenter: Any, package_segmenter: SAM2ImagePredictor
) -> None:
    pixels = noise(height, width)
    corners = np.sort(np.random.default_rng(count).random((count, 2, 2)), axis=1) * [width, height]
    boxes = [Box(*corner.ravel()) for corner in corners]
    expected, quality = baseline.segment(package_segmenter, pixels, np.array(boxes))
    masks, scores = segmenter.segment(pixels, boxes)
    assert (masks.shape, masks.dtype, scores.dtype) == ((count, height, width), np.bool_, np.float32)
    np.testing.assert_allclose(scores, quality, atol=1e-5)
    # A pixel whose logit is all but zero may fall on either side.
    assert (masks != expected).mean() < 1e-4
    assert 0 < masks.mean() < 1


def test_boxes_are_segmented_a_few_at_a_time(segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, embedded = [], []
    predict, set_image = segmenter._predictor.predict, segmenter._predictor.set_image
    monkeypatch.setattr(segmenter._predictor, "predict", lambda **kw: (sizes.append(len(kw["box"])), predict(**kw))[1])
    monkeypatch.setattr(segmenter._predictor, "set_image", lambda image: (embedded.append(1), set_image(image)))
    masks, _ = segmenter.segment(noise(40, 40), [Box(0, 0, 20, 20 + number) for number in range(19)])
    assert (sum(sizes), max(sizes), len(embedded), len(masks)) == (19, sam.AT_ONCE, 1, 19)


def test_it_stops_between_boxes_when_nobody_waits(segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, predict = [], segmenter._predictor.predict
    monkeypatch.setattr(segmenter._predictor, "predict", lambda **kw: (seen.append(len(kw["box"])), predict(**kw))[1])
    with pytest.raises(CancelledError):
        segmenter.segment(noise(40, 40), [Box(0, 0, 20, 20)] * 19, cancelled=lambda: len(seen) == 2)
    assert seen == [sam.AT_ONCE] * 2
    assert segmenter._predictor._features is None


def test_nothing_of_a_photo_is_kept(segmenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter.segment(noise(40, 40), [Box(0, 0, 20, 20)])
    assert segmenter._predictor._features is None
    monkeypatch.setattr(segmenter._predictor, "predict", lambda **kw: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter.segment(noise(40, 40), [Box(0, 0, 20, 20)])
    assert segmenter._predictor._features is None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2048), (2048, 1), (2, 1000)])
def test_the_smallest_and_narrowest_photos(height: int, width: int, detector: Any, segmenter: Any) -> None:
    pixels = noise(height, width)
    pixels.flags.writeable = False
    found = detector.detect(pixels, ["shirt", "hat"], box_threshold=0, text_threshold=0)
    assert found
    for left, top, right, bottom in (each.box for each in found):
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
    masks, scores = segmenter.segment(pixels, [each.box for each in found])
    assert masks.shape == (len(found), height, width)
    assert ((scores >= 0) & (scores <= 1)).all()


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([(192, 320), (40, 66)]))
@settings(max_examples=50, deadline=None)
def test_a_photo_is_prepared_as_in_the_package(height: int, width: int, sides: tuple[int, int]) -> None:
    shorter, longer = sides
    pixels = noise(height, width)
    prepared = grounding_dino._prepared(pixels, shorter, longer)[0]
    if round(longer * min(height, width) / max(height, width)) < 1:
        assert min(prepared.shape[1:]) == 1  # the package fails
        return
    torch.testing.assert_close(prepared, baseline.prepared(pixels, shorter, longer), atol=1e-5, rtol=0)


def test_threads_take_turns(detector: Any, segmenter: Any) -> None:
    photos = [noise(60 + 20 * number, 100, number) for number in range(6)]
    boxes = [Box(0, 0, 50, 50), Box(20, 20, 90, 60)]
    prompts = [["shirt"], ["shirt", "hat", "a long red coat"]] * 3

    def both(number: int) -> Any:
        found = detector.detect(photos[number], prompts[number], box_threshold=0, text_threshold=0)
        return found, segmenter.segment(photos[number], boxes)

    alone, together = [both(number) for number in range(6)], {}
    threads = [threading.Thread(target=lambda n=n: together.update({n: both(n)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number, (found, (masks, _)) in enumerate(alone):
        assert together[number][0] == found
        assert (together[number][1][0] == masks).all()


def test_a_photo_is_finished_before_the_next_one(
    detector: Any, segmenter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = []

    def watched(owner: Any, name: str, of: Any) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, **kw: (locked.append((name, of._one_photo.locked())), function(*args, **kw))[1]
        )

    watched(detector._model.tokenizer, "tokenize", detector)
    watched(detector._model, "forward", detector)
    for name in ("set_image", "predict", "reset_predictor"):
        watched(segmenter._predictor, name, segmenter)
    detector.detect(noise(40, 40), ["shirt"], box_threshold=0, text_threshold=0)
    segmenter.segment(noise(40, 40), [Box(0, 0, 20, 20)])
    assert {name for name, _ in locked} == {"tokenize", "forward", "set_image", "predict", "reset_predictor"}
    assert all(held for _, held in locked)


# Prompts, with the tokenizer that the detector has.


@given(prompts=st.lists(st.text(max_size=12), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_spans_are_those_of_the_tokenizer(prompts: list[str], detector: Any) -> None:
    tokenizer = detector._model.tokenizer
    try:
        caption = grounding_dino.caption_of(prompts, tokenizer.tokenize)
    except PromptsError:
        return
    sentence = tokenizer(caption.text)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(sentence)
    assert [words[span.stop] for span in caption.spans] == ["."] * len(caption.prompts)
    assert (words[0], words[-1], words[-2], len(words)) == ("[CLS]", "[SEP]", ".", caption.spans[-1].stop + 2)
    assert words.count("[CLS]") == words.count("[SEP]") == 1
    for prompt, span in zip(caption.prompts, caption.spans, strict=True):
        assert words[span] == tokenizer.tokenize(" ".join(prompt.lower().replace(".", " ").replace("?", " ").split()))


def test_special_words_in_prompts_are_plain_words(detector: Any) -> None:
    found = detector.detect(noise(50, 50), ["[SEP] shirt", "[MASK]", "hat"], box_threshold=0, text_threshold=0)
    assert {each.label for each in found} <= {"[SEP] shirt", "[MASK]", "hat"}
    assert len(found) == 20


def test_labels_are_the_prompts_as_they_were_asked(detector: Any) -> None:
    prompts = ["T-Shirt.", "Café dress", "hat", "HAT", "a very long red wintercoat"]
    labels = {each.label for each in detector.detect(noise(99, 99), prompts, box_threshold=0, text_threshold=0)}
    assert labels <= {*prompts} - {"HAT"}
    assert len(labels) > 1


def test_as_many_prompts_as_the_model_reads(detector: Any) -> None:
    words = [f"{left}{right}" for left in "abcdefgh" for right in "0123456789"]  # two tokens each, and the dot
    found = detector.detect(noise(50, 50), [*words, *words, *words[:5], "hat"], box_threshold=0, text_threshold=0)
    assert {each.label for each in found} <= {*words, "hat"}
    with pytest.raises(PromptsError, match=r"are 302 tokens long, and the model reads 256"):
        detector.detect(
            noise(50, 50), [*words, *(f"x{word}" for word in words[:15])], box_threshold=0, text_threshold=0
        )


# Weights.


@pytest.fixture
def damaged(stand_ins: StandIns, tmp_path: Path) -> Callable[..., Path]:
    """Save a checkpoint again, otherwise."""

    def save(source: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        weights = torch.load(source, weights_only=True)["model"]
        change(weights)
        torch.save({"model": weights}, tmp_path / source.name)
        return tmp_path / source.name

    return save


def test_what_the_detectors_checkpoint_may_have_too(stand_ins: StandIns) -> None:
    names = torch.load(stand_ins.detector, weights_only=True)["model"]
    assert all(name.startswith("module.") for name in names)
    assert {f"module.{name}" for name in grounding_dino.NOT_NEEDED} <= set(names)


@pytest.mark.parametrize("name", ["module.bert.embeddings.other", "module.label_enc.bias", "extra"])
def test_a_weight_too_many_in_the_detector(name: str, stand_ins: StandIns, damaged: Any) -> None:
    model = grounding_dino.build(stand_ins.text_encoder, "stand-in")
    path = damaged(stand_ins.detector, lambda weights: weights.update({name: torch.zeros(1)}))
    with pytest.raises(LoadError) as caught:
        grounding_dino.load(model, path)
    assert len(caught.value.problems) == 1
    assert name.removeprefix("module.") in caught.value.problems[0]


def test_a_weight_missing_in_the_detector(stand_ins: StandIns, damaged: Any) -> None:
    model = grounding_dino.build(stand_ins.text_encoder, "stand-in")
    path = damaged(stand_ins.detector, lambda weights: weights.pop("module.bert.encoder.layer.1.output.dense.bias"))
    with pytest.raises(LoadError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias"):
        grounding_dino.load(model, path)


def test_a_weight_missing_and_one_too_many_in_the_segmenter(stand_ins: StandIns, damaged: Any) -> None:
    path = damaged(stand_ins.segmenter, lambda weights: weights.update(other=weights.pop("no_mem_embed")))
    with pytest.raises(LoadError) as caught:
        sam.load(sam.build(size="stand-in"), path)
    assert [name in problem for name, problem in zip(("no_mem_embed", "other"), caught.value.problems, strict=True)]
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", [{"state_dict": {}, "epoch": 3}, {}, {"model": [1, 2]}])
def test_a_file_of_another_layout(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(LoadError, match=r"no weights under 'model'"):
        sam.load(sam.build(size="stand-in"), tmp_path / "other.pt")


def test_the_full_architectures(stand_ins: StandIns, tmp_path: Path) -> None:
    for file in stand_ins.text_encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    BertConfig().save_pretrained(tmp_path)  # its defaults are bert-base-uncased
    with skip_init():
        models = [grounding_dino.build(tmp_path), sam.build()]
    assert [len(model.state_dict()) for model in models] == [938, 900]
    millions = [sum(weight.numel() for weight in model.parameters()) / 1e6 for model in models]
    assert millions == pytest.approx([172.8, 224.4], abs=0.1)  # as the published files have them
    assert sam.Sam2(models[1])._predictor._bb_feat_sizes == SAM2ImagePredictor(models[1])._bb_feat_sizes


@pytest.mark.parametrize("variant", sam.VARIANTS)
def test_every_segmenter_fits_the_checkpoint_of_its_name(variant: str) -> None:
    """As far as its size says: the file has little but the weights, in 4 bytes each."""
    checkpoint = Manifest.load(REAL)[f"sam2-{variant}"]
    with skip_init():
        model = sam.build(variant)
    weights = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    assert 0 < (checkpoint.size or 323_500_000) - weights < 400_000  # of base-plus nobody publishes it
    assert (checkpoint.size is None) == (variant == "base-plus")
    assert checkpoint.urls[0].endswith(f"/072824/sam2_hiera_{variant.replace('-', '_')}.pt")


@pytest.mark.parametrize("size", ["full", "stand-in"])
def test_a_segmenter_that_there_is_not(size: Any) -> None:
    with pytest.raises(ValueError, match=r"no segmenter 'huge': choose one of large, base-plus, small, tiny"):
        sam.build("huge", size)


def test_models_move_to_a_device(stand_ins: StandIns) -> None:
    models = grounding_dino.build(stand_ins.text_encoder, "stand-in"), sam.build(size="stand-in")
    detector, segmenter = grounding_dino.GroundingDino(models[0], size="stand-in"), sam.Sam2(models[1])
    for each in (detector, segmenter):
        each.to("meta")  # the only other device of every machine
    assert {weight.device.type for model in models for weight in model.parameters()} == {"meta"}
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # the photo goes there too
        detector.detect(noise(40, 40), ["shirt"], box_threshold=0, text_threshold=0)
    assert segmenter._predictor.device.type == "meta"


@pytest.mark.parametrize(("device", "asked"), [("cpu", []), ("cuda", [("cuda", torch.bfloat16)])])
def test_half_precision_is_used_where_the_model_is_now(
    device: str, asked: list[Any], segmenter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(sam.torch, "autocast", lambda *given: (taken.append(given), nullcontext())[1])
    monkeypatch.setattr(SAM2ImagePredictor, "device", torch.device(device))
    with segmenter._half():
        assert taken == asked


# The package's functions, and the net.


@pytest.fixture
def originals() -> Iterator[list[Any]]:
    def functions() -> list[Any]:
        return [
            get_tokenlizer.get_tokenlizer,
            get_tokenlizer.get_pretrained_language_model,
            swin.build_swin_transformer,
        ]

    before = functions()
    yield before
    assert functions() == before
    assert [function.__module__.partition(".")[0] for function in before] == ["groundingdino"] * 3


@pytest.mark.usefixtures("originals")
def test_the_packages_functions_are_put_back(stand_ins: StandIns, tmp_path: Path) -> None:
    grounding_dino.build(stand_ins.text_encoder, "stand-in")
    for file in set(stand_ins.text_encoder.iterdir()) - {stand_ins.text_encoder / "config.json"}:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OSError, match=r"config\.json"):
        grounding_dino.build(tmp_path, "stand-in")


WITHOUT_NET = """\
import os, pathlib, sys
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event.startswith("socket.") else None)
import numpy as np
from fashion_crop.models import grounding_dino, sam
model = grounding_dino.build(pathlib.Path(sys.argv[1]) / "bert-base-uncased", "stand-in")
grounding_dino.load(model, pathlib.Path(sys.argv[1]) / "groundingdino_stand_in.pth")
detector = grounding_dino.GroundingDino(model, size="stand-in")
pixels = np.zeros((99, 99, 3), np.uint8)
found = detector.detect(pixels, ["shirt"], box_threshold=0, text_threshold=0)
segmenter = sam.build(size="stand-in")
sam.load(segmenter, pathlib.Path(sys.argv[1]) / "sam2_large_stand_in.pt")
sam.Sam2(segmenter).segment(pixels, [each.box for each in found])
reached = [each for each in asked if each[0] not in ("socket.__new__", "socket.bind", "socket.gethostname")]
print(len(found), reached, os.path.exists(os.environ["HF_HOME"]), "HF_HUB_OFFLINE" in os.environ)
"""


@pytest.mark.parametrize("offline", [True, False])
def test_nothing_asks_the_net(offline: bool, stand_ins: StandIns, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(REAL.parents[1])}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    run = [sys.executable, "-W", "error", "-c", textwrap.dedent(WITHOUT_NET), str(stand_ins.files)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, f"20 [] False {offline}\n"), done.stderr


# torchvision beside a torch for the CPU.


@pytest.mark.parametrize(
    ("cuda", "version", "declared"),
    [(None, "0.28.0+cu130", 2), ("13.0", "0.28.0+cu130", 0), (None, "0.28.0+cpu", 0), (None, "0.28.0", 0)],
)
def test_packages_is_helped_only_where_it_cannot_be_imported(
    cuda: str | None, version: str, declared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\ngit_version = 'abc'\n")
    spec = ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    defined: list[str] = []
    monkeypatch.setattr(_packages, "_declared", [])
    monkeypatch.setattr(_packages.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.library, "Library", lambda *names: SimpleNamespace(define=defined.append))
    _packages.let_torchvision_import()
    assert [schema.partition("(")[0] for schema in defined] == ["nms", "qnms"][:declared]


# Stand-ins.


def test_stand_ins_are_the_same_at_every_call(stand_ins: StandIns, tmp_path: Path) -> None:
    manifests = [Manifest.load(path) for path in (stand_ins.manifest, make_stand_ins(tmp_path, "http://127.0.0.1:9"))]
    first, second = ({entry.name: entry.digest for entry in manifest} for manifest in manifests)
    assert first == second
    assert 'urls = ["http://127.0.0.1:9/sam2_large_stand_in.pt"]' in (tmp_path / "weights.toml").read_text()


def test_stand_ins_have_the_shape_of_the_real_manifest(stand_ins: StandIns) -> None:
    ours, real = Manifest.load(stand_ins.manifest), Manifest.load(REAL)
    names = [entry.name for entry in ours]
    assert names == ["groundingdino", "sam2-large", "sam2-tiny", "bert-base-uncased"]
    assert names == [entry.name for entry in real.select(names)]  # in the same order
    files = [{file.path for file in manifest["bert-base-uncased"].files} for manifest in (ours, real)]
    assert files[0] == files[1]
    assert ours["sam2-large"].digest != ours["sam2-tiny"].digest


@pytest.mark.parametrize("pixels", [noise(480, 640), np.full((600, 400, 3), 90, np.uint8)], ids=["noise", "grey"])
def test_stand_ins_find_something_and_obey_thresholds(pixels: NDArray[np.uint8], detector: Any) -> None:
    found = detector.detect(pixels, [*GARMENTS, "person"], box_threshold=0.35, text_threshold=0.25)
    assert 3 <= len(found) < 20
    assert len({each.label for each in found}) >= 3
    height, width = pixels.shape[:2]
    sizes = [(box.right - box.left) * (box.bottom - box.top) / (height * width) for box in (each.box for each in found)]
    assert np.median(sizes) > 0.01
    fewer = detector.detect(pixels, [*GARMENTS, "person"], box_threshold=0.55, text_threshold=0.25)
    assert 0 < len(fewer) < len(found)
    assert not detector.detect(pixels, [*GARMENTS, "person"], box_threshold=0.95, text_threshold=0.25)
