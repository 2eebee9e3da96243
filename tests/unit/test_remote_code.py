"""Code that comes with a model of a hub: never run unless the volunteer says so, and never where it is not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from peer.tasks import build_model, shape_model
from swarm.errors import ManifestError
from swarm.manifest import Manifest

CODE = """
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

Path(__file__).with_name("was-run").touch()


class BeeConfig(PretrainedConfig):
    model_type = "bee"

    def __init__(self, vocab_size=257, hidden_size=8, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)


class BeeModel(PreTrainedModel):
    config_class = BeeConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, **kwargs):
        return CausalLMOutput(logits=self.head(self.embedding(input_ids)))
"""
AUTO_MAP = {"AutoConfig": "bee.BeeConfig", "AutoModelForCausalLM": "bee.BeeModel"}
# The weights come from the code itself, in a process of its own: this one must never have run it.
SAVE = "import sys; sys.path.insert(0, '.'); import bee; bee.BeeModel(bee.BeeConfig()).save_pretrained('.')"
BUILD = """
import sys
from peer.tasks import build_model
from swarm.manifest import Manifest
model = build_model(Manifest.load(sys.argv[1]), trust_remote_code=True)
print(type(model).__name__, sum(parameter.numel() for parameter in model.parameters()))
"""


def python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, without a network, and with a cache of code of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False,
        cwd=folder, env={**environment, "PYTHONPATH": root},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with weights, and the code that it needs."""
    folder = tmp_path_factory.mktemp("bee")
    (folder / "bee.py").write_text(CODE)
    done = python(SAVE, folder=folder)
    assert done.returncode == 0, done.stderr
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": AUTO_MAP}))
    (folder / "was-run").unlink()
    return folder


def manifest(hub: Path) -> str:
    return f"""
waggle = 1
name = "bee"
[model]
hub = "{hub}"
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = 16
batch_size = 2
[outer]
optimizer = "sgd"
learning_rate = 0.1
[round]
average = "gradients"
target_batch = 8
"""


def test_code_that_is_not_trusted_is_not_run(model: Path) -> None:
    for build in (build_model, shape_model):
        with pytest.raises(ManifestError) as caught:
            build(Manifest.from_toml(manifest(model)))
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"model.hub: '{model}' needs code that comes with it (auto_map in its config.json)")
        assert line.endswith("start the peer with --trust-remote-code")
    assert not list(model.rglob("was-run"))


def test_code_that_is_trusted_is_run(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(manifest(model))
    done = python(BUILD, str(file), folder=tmp_path)
    assert done.stdout == f"BeeModel {2 * 257 * 8 + 257}\n", done.stderr
    assert list((tmp_path / "cache").rglob("was-run"))


def test_code_that_is_not_needed_is_not_run_even_if_trusted(model: Path, tmp_path: Path) -> None:
    """Peers that trust and peers that do not must build the same model."""
    hub = tmp_path / "gpt2"
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 16, "vocab_size": 257}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=256)).save_pretrained(hub)
    (hub / "bee.py").write_text(CODE)
    config = hub / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": AUTO_MAP}))
    file = tmp_path / "run.toml"
    file.write_text(manifest(hub))
    done = python(BUILD, str(file), folder=tmp_path)
    assert done.stdout.startswith("GPT2LMHeadModel "), done.stderr
    assert not list(tmp_path.rglob("was-run"))


@pytest.mark.parametrize("content", ["", "[]", '{"auto_map": {}}', '{"model_type": ["gpt2"]}', '{"model_type": "bee"}'])
def test_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ManifestError, match=r"^model\.hub: cannot load") as caught:
        build_model(Manifest.from_toml(manifest(tmp_path)))
    assert "\n" not in str(caught.value)
