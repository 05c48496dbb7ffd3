"""docs/how-to/load-with-libraries.md: each library loads what `ensure` published, like the directory that it wrote."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import directory as manifest_of
from support import lacking, toml_of
from weightcache import Weights, ensure

pytestmark = pytest.mark.transformers
PAGE = Path(__file__).parents[2] / "docs/how-to/load-with-libraries.md"
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

Publish = Callable[..., Weights]


def needs(*libraries: str) -> None:
    for name in libraries:
        if find_spec(name) is None:
            lacking(f"{name} is not installed")


def blocks(section: str) -> list[str]:
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    """They deprecate parts of each other as they are imported and called; nothing of weightcache warns here."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("error", module="weightcache")
        yield


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with third_party_warnings_ignored():
        yield


@pytest.fixture
def publish(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Serve directories that a library wrote, and run the first block of the page: a prefetch, and `ensure`."""

    def publish(**directories: Path) -> Weights:
        manifest: dict[str, Any] = {"version": 1, "checkpoints": {}}
        for name, made in directories.items():
            files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
            for path, data in files.items():
                origin.put(f"/{name}/{path}", data)
            manifest["checkpoints"] |= manifest_of(files, origin.url(f"/{name}"), name=name)["checkpoints"]
        monkeypatch.chdir(tmp_path)
        toml_of(manifest, tmp_path / "weights.toml")
        root = tmp_path / "volume"
        ensure(manifest, root=root, progress=False)
        [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[:1]
        names: dict[str, Any] = {}
        exec(code.replace("/vol/weights", str(root)), names)
        with names["reading"] as reading:
            assert reading.wait(60)
        assert not reading.stats.skipped
        weights: Weights = names["weights"]
        assert {each.outcome for each in weights.report.values()} == {"hit"}
        assert all(weights[name].is_relative_to(root) for name in directories)
        return weights

    return publish


def run(code: str, weights: Weights) -> dict[str, Any]:
    names: dict[str, Any] = {"weights": weights}
    exec(compile(code, PAGE.name, "exec"), names)
    return names


def make_bert(folder: Path, **options: Any) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    BertModel(BertConfig(**BERT)).save_pretrained(folder, **options)
    return folder


def output(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(8)[None]).last_hidden_state


def assert_same_state(one: Any, other: Any) -> None:
    from torch_files import raw

    one, other = dict(one), dict(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor.dtype, tensor.shape, raw(tensor)) == (other[name].dtype, other[name].shape, raw(other[name]))


@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_transformers(shard: str, publish: Publish, tmp_path: Path) -> None:
    needs("torch", "transformers")
    import torch
    from transformers import AutoModel

    made = make_bert(tmp_path / "bert", max_shard_size=shard)
    weights = publish(bert=made)
    assert (weights["bert"] / "model.safetensors.index.json").exists() == (shard == "8KB")
    plain = AutoModel.from_pretrained(made)
    for code in blocks("transformers"):
        model = run(code, weights)["model"]
        assert_same_state(model.state_dict(), plain.state_dict())
        assert torch.equal(output(model), output(plain))


def test_transformers_on_meta(publish: Publish, tmp_path: Path) -> None:
    needs("torch", "transformers")
    import torch
    from transformers import AutoConfig, AutoModel

    from weightcache.torch import load_state_dict

    made = make_bert(tmp_path / "bert", max_shard_size="8KB")
    weights = publish(bert=made)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(weights["bert"]))
    model.load_state_dict(load_state_dict(weights["bert"]), assign=True)
    plain = AutoModel.from_pretrained(made)
    assert_same_state(model.state_dict(), plain.state_dict())
    assert any(buffer.is_meta for buffer in model.buffers())  # what the page warns of
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        module._buffers.update(other._buffers)
    assert torch.equal(output(model.eval()), output(plain))


def test_diffusers(publish: Publish, tmp_path: Path) -> None:
    needs("torch", "diffusers")
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(7)
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    DDPMPipeline(UNet2DModel(**sizes, **kinds), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    weights = publish(ddpm=tmp_path / "ddpm")
    plain = DDPMPipeline.from_pretrained(tmp_path / "ddpm").unet
    noise, step = torch.randn(1, 3, 8, 8), torch.tensor([3])
    for code in blocks("diffusers"):
        names = run(code, weights)
        found = [names["unet"], *([names["pipeline"].unet] if "pipeline" in names else [])]
        for unet in found:
            assert_same_state(unet.state_dict(), plain.state_dict())
            with torch.no_grad():
                assert torch.equal(unet(noise, step).sample, plain(noise, step).sample)


def test_sentence_transformers(publish: Publish, tmp_path: Path) -> None:
    needs("torch", "transformers", "sentence_transformers")
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertTokenizer

    made = make_bert(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "shirt", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(made)
    transformer = models.Transformer(str(made))
    pooling = models.Pooling(BERT["hidden_size"])
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(tmp_path / "minilm"))
    plain = SentenceTransformer(str(tmp_path / "minilm"), device="cpu")
    weights = publish(minilm=tmp_path / "minilm")
    [code] = blocks("sentence-transformers")
    encoder = run(code, weights)["encoder"]
    text = ["red shirts", "shirt"]
    assert encoder.encode(text).tobytes() == plain.encode(text).tobytes()
    assert_same_state(encoder.state_dict(), plain.state_dict())


def test_onnx_runtime_with_external_data(publish: Publish, tmp_path: Path) -> None:
    needs("onnx", "onnxruntime")
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(7).standard_normal((32, 32)).astype(np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "matrix"], ["y"])]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], [numpy_helper.from_array(matrix, "matrix")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = tmp_path / "onnx"
    made.mkdir()
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save_model(model, str(made / "model.onnx"), **options)
    assert (made / "model.onnx.data").stat().st_size >= matrix.nbytes
    weights = publish(onnx=made)
    [code] = blocks("ONNX Runtime")
    session = run(code, weights)["session"]
    plain = onnxruntime.InferenceSession(made / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.arange(32, dtype=np.float32)[None]
    assert session.run(None, {"x": x})[0].tobytes() == plain.run(None, {"x": x})[0].tobytes()


def test_peft(publish: Publish, tmp_path: Path) -> None:
    needs("torch", "transformers", "peft")
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModel

    from weightcache.torch import load_state_dict

    base, lora = make_bert(tmp_path / "bert"), tmp_path / "lora"
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(lora)
    weights = publish(bert=base, lora=lora)
    [code] = blocks("PEFT")
    adapted = run(code, weights)["adapted"]
    plain = PeftModel.from_pretrained(AutoModel.from_pretrained(base), lora)
    assert_same_state(adapted.state_dict(), plain.state_dict())
    assert torch.equal(output(adapted), output(plain))
    assert not torch.equal(output(adapted), output(AutoModel.from_pretrained(base)))
    from safetensors.torch import load_file

    assert_same_state(load_state_dict(weights["lora"]), load_file(lora / "adapter_model.safetensors"))


def test_safetensors_alone(publish: Publish, tmp_path: Path) -> None:
    needs("torch", "safetensors")
    from safetensors.torch import load_file

    from torch_files import weights as tensors
    from torch_files import write
    from weightcache.torch import load_state_dict

    (tmp_path / "bert").mkdir()
    path = write(tmp_path / "bert/model.safetensors", tensors(), "safetensors")
    weights = publish(bert=tmp_path / "bert")
    [code] = blocks("safetensors")
    state_dict = run(code, weights)["state_dict"]
    assert_same_state(state_dict, load_file(path))
    assert_same_state(load_state_dict(weights["bert"]), load_file(path))
