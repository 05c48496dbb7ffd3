"""examples/minimal: the app as it is, with a small BERT in place of the published one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from control_plane import ControlPlane
from origin import Origin
from shell import commands, shell
from support import directory, toml_of
from weightcache import Manifest

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "she", "wears", "a", "red", "dress", "hat", "shirt"]


def small_bert(folder: Path) -> dict[str, bytes]:
    """Return the files of a BERT that answers every question with dress, and then with hat."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias[WORDS.index("dress")] = 100
        model.cls.predictions.bias[WORDS.index("hat")] = 50
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    vocabulary = tokenizers.BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)})
    vocabulary.save(str(folder / "tokenizer.json"))
    names = [file.path for file in Manifest.load(EXAMPLE / "weights.toml")["bert-base-uncased"].files]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def clone(origin: Origin, tmp_path: Path) -> Path:
    """Copy the example, with a manifest of the same checkpoint whose files are small, and at ``origin``."""
    files = small_bert(tmp_path / "bert")
    for name, data in files.items():
        origin.put(f"/{name}", data)
    app = tmp_path / "clone" / "examples" / "minimal"
    shutil.copytree(EXAMPLE, app)
    toml_of(directory(files, origin.url(""), name="bert-base-uncased"), app / "weights.toml")
    return tmp_path / "clone"


def test_it_is_short() -> None:
    assert len((EXAMPLE / "app.py").read_text().splitlines()) <= 30


@pytest.mark.usefixtures("namespaces")
def test_what_it_loads_answers(plane: ControlPlane, clone: Path, origin: Origin, tmp_path: Path) -> None:
    deployed = plane.client("-m", "modal", "deploy", "examples/minimal/app.py", directory=clone)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    [block] = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    install, setup, run = block.splitlines()
    assert (install, setup) == ("pip install '.[modal]'", "modal setup")
    tools = commands(tmp_path / "bin", "modal", "weightcache")
    sent = []
    for _ in range(2):
        done = shell(run, clone, plane.outside() | {"PATH": f"{tools}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stdout + done.stderr + "".join(each.log for each in plane.containers)
        assert re.search("^dress hat ", done.stdout, re.MULTILINE), done.stdout
        sent.append(origin.sent())
    assert sent[0] == sent[1] > 10_000  # the second container downloads nothing
