"""Models and losses: built the same everywhere, refused in one line, and a mean that is a mean over examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console

from peer.needs import memory
from peer.tasks import TASKS, build_model, check_vocabulary, generate, max_positions, shape_model
from swarm.errors import ManifestError
from swarm.manifest import Manifest
from waggle.run import bytes_per_outer_step, in_words, render

ROOT = Path(__file__).parents[2]
GPT2 = 'type = "gpt2"\nconfig = { n_layer = 1, n_head = 2, n_embd = 16, n_positions = 32, vocab_size = 257 }'
SPECIAL = GPT2.replace(
    " }", ", bos_token_id = 256, eos_token_id = 256, attn_pdrop = 0.0, embd_pdrop = 0.0, resid_pdrop = 0.0 }"
)


def manifest(model: str = SPECIAL, length: int = 16, seed: int = 0) -> Manifest:
    return Manifest.from_toml(f"""
waggle = 1
name = "tiny"
seed = {seed}
[model]
{model}
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = {length}
batch_size = 4
[outer]
optimizer = "sgd"
learning_rate = 0.1
momentum = 0.9
[round]
average = "gradients"
target_batch = 64
codec = "fp16"
""")


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_manifest_allows_the_tasks_that_there_are() -> None:
    assert set(get_args(Manifest.model_fields["task"].annotation)) == set(TASKS)


def test_a_model_follows_from_the_seed_and_disturbs_no_other_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = flat(build_model(manifest()))
    assert torch.equal(torch.rand(3), expected)
    second = flat(build_model(manifest()))
    assert torch.equal(first, second)
    assert torch.equal(first, flat(build_model(manifest(seed=5), seed=0)))
    assert not torch.equal(first, flat(build_model(manifest(seed=5))))
    assert not torch.equal(first, flat(build_model(manifest(seed=2**63 - 1))))


def test_a_model_is_float32_on_the_cpu_and_trains() -> None:
    model = build_model(manifest())
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert model.training


def test_a_shape_has_the_parameters_and_no_memory() -> None:
    expected = [(name, value.shape) for name, value in build_model(manifest()).named_parameters()]
    shape = shape_model(manifest())
    assert [(name, value.shape) for name, value in shape.named_parameters()] == expected
    assert {value.device.type for value in shape.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("model", "length", "reason"),
    [
        (
            'type = "gpt3"',
            16,
            r"model\.type: the installed transformers knows no model type 'gpt3', did you mean \w+\?",
        ),
        ('type = "vit"', 16, r"model\.type: 'vit' has no causal language model in transformers.*"),
        (SPECIAL.replace("n_layer = 1", 'n_layer = "two"'), 16, r"model\.config: .*n_layer.*"),
        (
            SPECIAL.replace("n_head = 2", "n_head = 3"),
            16,
            r"model\.config: transformers cannot build this gpt2: .*divisible.*",
        ),
        (SPECIAL.replace("n_embd = 16", "n_embd = -16"), 16, r"model\.config: transformers cannot build this gpt2: .*"),
        (
            SPECIAL.replace("n_embd", "n_emb"),
            16,
            r"model\.config\.n_emb: gpt2 knows no such key, did you mean n_embd\?",
        ),
        (
            SPECIAL.replace(" }", ', activation_function = "no" }'),
            16,
            r"model\.config: transformers cannot build .*no.*",
        ),
        (
            SPECIAL.replace(" }", ', dtype = "bfloat16" }'),
            16,
            r"model\.config\.dtype: not for a manifest to say; leave it out",
        ),
        (
            SPECIAL.replace(" }", ", _commit_hash = 1 }"),
            16,
            r"model\.config\._commit_hash: not for a manifest to say.*",
        ),
        (SPECIAL.replace("257", "256"), 16, r"model\.config\.vocab_size: 256 is below the 257 tokens of the tokenizer"),
        (SPECIAL, 33, r"data\.sequence_length: 33 exceeds the model's 32 positions"),
    ],
)
@pytest.mark.parametrize("build", [build_model, shape_model])
def test_what_cannot_be_built_is_refused_in_one_line(build: object, model: str, length: int, reason: str) -> None:
    assert callable(build)
    with pytest.raises(ManifestError) as caught:
        build(manifest(model, length))
    assert re.fullmatch(reason, str(caught.value)), str(caught.value)


def test_a_larger_tokenizer_is_refused() -> None:
    model = build_model(manifest())
    check_vocabulary(model, 257)
    with pytest.raises(ManifestError, match=r"model\.config\.vocab_size: 257 is below the 258 tokens"):
        check_vocabulary(model, 258)


def test_weights_come_from_the_hub_by_the_same_road_as_from_a_directory(tmp_path: Path) -> None:
    saved = build_model(manifest(seed=3))
    saved.save_pretrained(tmp_path)  # type: ignore[operator]
    by_hub = manifest(f'hub = "{tmp_path}"')
    model = build_model(by_hub)
    assert torch.equal(flat(model), flat(saved))
    assert model.training
    assert sum(p.numel() for p in shape_model(by_hub).parameters()) == flat(saved).numel()


def test_a_missing_directory_of_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    for build in (build_model, shape_model):
        with pytest.raises(ManifestError) as caught:
            build(manifest(f'hub = "{tmp_path / "none"}"'))
        assert str(caught.value).startswith("model.hub: cannot load ")
        assert "\n" not in str(caught.value)


def test_the_loss_is_the_mean_over_examples() -> None:
    task, model = TASKS["causal-lm"], build_model(manifest())
    tokens = torch.randint(0, 257, (5, 16), generator=torch.Generator().manual_seed(0))
    alone = torch.stack([task.loss(model, tokens[i : i + 1]) for i in range(5)])
    whole = task.loss(model, tokens)
    assert whole.shape == ()
    torch.testing.assert_close(whole, alone.mean(), rtol=1e-6, atol=0)
    # The reference: transformers' own causal loss.
    torch.testing.assert_close(whole, model(input_ids=tokens, labels=tokens).loss, rtol=1e-6, atol=0)


def test_gradients_of_unequal_batches_add_up_by_their_examples() -> None:
    task, model = TASKS["causal-lm"], build_model(manifest())
    tokens = torch.randint(0, 257, (5, 16), generator=torch.Generator().manual_seed(0))

    def gradient(batch: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()

    weighted = (2 * gradient(tokens[:2]) + 3 * gradient(tokens[2:])) / 5
    torch.testing.assert_close(weighted, gradient(tokens), rtol=1e-5, atol=1e-7)


def test_generation_follows_its_seed_and_outlives_the_window() -> None:
    model = build_model(manifest())
    assert max_positions(model) == 32
    first = generate(model, [104, 105], 40, seed=1)
    assert first == generate(model, [104, 105], 40, seed=1)
    assert first != generate(model, [104, 105], 40, seed=2)
    assert len(first) == 40
    assert model.training
    assert generate(model, [1], 3, temperature=0) == generate(model, [1], 3, temperature=0, seed=9)
    assert generate(model, [104, 105], 40, seed=1, end_of_text_id=first[7]) == first[: first.index(first[7])]


def test_all_reduce_costs_each_peer_twice_the_size_but_for_its_own_part() -> None:
    assert bytes_per_outer_step(1000, "fp32", 2) == 4000
    assert bytes_per_outer_step(1000, "fp32", 4) == 6000
    assert bytes_per_outer_step(1000, "fp16", 8) == 3500
    assert bytes_per_outer_step(1000, "fp16", 1) == 0
    rows = 100 * 4096
    assert bytes_per_outer_step(rows, "sparse", 4, 64) == 100 * 3 / 4 * (84 + 84)
    assert bytes_per_outer_step(rows, "sparse", 4, 256, 64) == 100 * 3 / 4 * (28 + 84), "contributions, a denser mean"


def test_memory_counts_what_the_optimizers_keep() -> None:
    need = memory(manifest(), 1000)
    assert (need.parameters, need.gradients, need.committed) == (4000, 4000, 4000)
    # The contribution and the mean over it; what came for a part of all values and two means of it, in fp16, all of
    # them at most twice as long as equal parts of two; two next states.
    assert need.round == 4000 + 2 * 2000 + 2 * 2000 + 2 * 8000
    assert (need.inner_optimizer, need.outer_optimizer) == (0, 4000)  # momentum
    assert need.total == 16000 + 28000
    alone = manifest()
    alone = alone.model_copy(update={"round": alone.round.model_copy(update={"min_group_size": 1})})
    assert memory(alone, 1000) == need, "no part is longer than the vector"
    demo = memory(Manifest.load(ROOT / "runs" / "demo.toml"), 1000)
    assert (demo.inner_optimizer, demo.outer_optimizer) == (8000, 0)  # AdamW; plain SGD
    muon = Manifest.from_toml((ROOT / "runs" / "demo.toml").read_text().replace('"adamw"', '"muon"'))
    assert memory(muon, 1000).inner_optimizer == 8000, "at most"
    text = (ROOT / "runs" / "demo.toml").read_text()
    sparse = [text.replace('codec = "fp16"', 'codec = "sparse"' + more) for more in ("", "\nmean_keep_one_in = 16")]
    alike, denser = (memory(Manifest.from_toml(one), 100 * 4096).round for one in sparse)
    assert denser - alike == 2 * 100 * (260 - 84), "two means of at most all values, of 260 bytes for a row, not 84"
    assert "with Muon and AdamW at 0.003, momentum 0.95 (Nesterov); when all have" in in_words(muon)


def test_show_says_what_the_manifest_means() -> None:
    assert in_words(manifest()) == (
        "each peer takes inner steps on 4 examples of 16 tokens and adds up gradients; at 64 examples in the whole "
        "swarm, their mean gradient (fp16) is applied by SGD at 0.1, momentum 0.9"
    )
    console = Console(width=120)
    with console.capture() as shown:
        console.print(render(manifest(), 1_000_000))
    text = shown.get()
    assert manifest().run_id in text
    assert "gpt2, 1,000,000 parameters" in text
    assert "3 MB sent and as much received by each" in text
    assert "at most, if no peer is in client mode, beside activations" in text
