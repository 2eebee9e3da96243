"""What a model learns: the transformers class, how it is built from a manifest, and its loss.

transformers is imported where it is needed: it takes seconds, which --help should not.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from swarm.errors import ManifestError
from swarm.manifest import Manifest, Model

BYTES_VOCABULARY = 257
"""What the tokenizer ``bytes`` needs: 256 byte values and the end of text."""
# Ours to decide: parameters are float32 in every peer, and code comes from installed packages only.
RESERVED = ("dtype", "torch_dtype", "model_type", "auto_map", "trust_remote_code", "quantization_config")

# (model, int64 [batch, length]) -> float32 scalar, the mean over the examples
Loss = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A row of TASKS.

    auto_class: the transformers class that builds its models. types: the name in
    transformers.models.auto.modeling_auto of the table of model types that it knows. noun: for messages.
    """

    auto_class: str
    types: str
    noun: str
    loss: Loss


def next_token_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of every token but the first, given those before it, in nats.

    tokens: int64 [batch, length]. All examples are of one length, so the mean over tokens is the mean over
    examples, and gradients of unequal batches average exactly by their number of examples. A model's own
    extra losses (a mixture of experts' balance) are not in it.
    """
    logits = model(input_ids=tokens).logits  # [batch, length, vocabulary]
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


TASKS: Mapping[str, Task] = {
    "causal-lm": Task(
        auto_class="AutoModelForCausalLM",
        types="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        noun="causal language model",
        loss=next_token_loss,
    ),
}


def build_model(manifest: Manifest, seed: int | None = None, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model before the first outer step: float32, on the CPU, in training mode.

    From ``seed`` (the manifest's when None) alone: the global random numbers neither matter nor change.
    trust_remote_code: whether code that comes with ``model.hub`` may run, where the model needs it.
    Raises ManifestError, one line that names the field.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators too, and fork_rng restores only the CPU.
        torch.default_generator.manual_seed(manifest.seed if seed is None else seed)
        model = _build(manifest, torch.device("cpu"), trust_remote_code)
    _check_fit(manifest, model)
    return model


def shape_model(manifest: Manifest, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model without memory or values (device meta): enough to count, and to find what build_model refuses.

    With ``model.hub`` this loads the configuration from the hub. Raises ManifestError like build_model.
    """
    with torch.random.fork_rng(devices=[]):
        model = _build(manifest, torch.device("meta"), trust_remote_code)
    _check_fit(manifest, model)
    return model


def count_parameters(manifest: Manifest, trust_remote_code: bool = False) -> int:
    """Of the model, without building it. Raises ManifestError like ``shape_model``."""
    return sum(parameter.numel() for parameter in shape_model(manifest, trust_remote_code).parameters())


def check_vocabulary(model: torch.nn.Module, vocabulary_size: int) -> None:
    """Raises ManifestError unless the model has an embedding for each of the tokenizer's ids."""
    embeddings = _embeddings(model)
    if embeddings < vocabulary_size:
        raise ManifestError(
            f"model.config.vocab_size: {embeddings} is below the {vocabulary_size} tokens of the tokenizer"
        )


def max_positions(model: torch.nn.Module) -> int | None:
    """The longest sequence the model was configured for; None when it has no such limit."""
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


@torch.no_grad()
def generate(
    model: torch.nn.Module,
    prompt: Sequence[int],
    length: int,
    *,
    temperature: float = 0.8,
    seed: int = 0,
    end_of_text_id: int | None = None,
) -> list[int]:
    """Up to ``length`` token ids sampled after ``prompt`` (at least one id), which is not repeated.

    Ends early at end_of_text_id, which is not included. temperature 0 takes the likeliest. What no longer
    fits in the model's positions is forgotten. The same seed samples the same on one machine.
    """
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    window = max_positions(model) or 0
    ids, was_training = list(prompt), model.training
    model.eval()
    try:
        for _ in range(length):
            context = torch.tensor([ids[-window:]], device=device)  # [1, context]; -0: all
            logits = model(input_ids=context).logits[0, -1].float().cpu()  # [vocabulary]
            if temperature > 0:
                chances = torch.softmax(logits / temperature, dim=-1)
                token = int(torch.multinomial(chances, 1, generator=random))
            else:
                token = int(logits.argmax())
            if token == end_of_text_id:
                break
            ids.append(token)
    finally:
        model.train(was_training)
    return ids[len(prompt) :]


def _build(manifest: Manifest, device: torch.device, trust_remote_code: bool) -> torch.nn.Module:
    """On ``device``, float32. With model.hub, values only on a real device."""
    import transformers

    task, wanted = TASKS[manifest.task], manifest.model
    auto: Any = getattr(transformers, task.auto_class)
    remote = wanted.hub is not None and _remote_code(wanted, task, trust_remote_code)
    if wanted.hub is not None and device.type != "meta":
        # Its progress bars would tear the peer's log lines; its warnings still come.
        transformers.utils.logging.disable_progress_bar()
        with _refused(f"model.hub: cannot load {wanted.hub!r}"):
            model = auto.from_pretrained(
                wanted.hub,
                revision=wanted.revision or "main",
                trust_remote_code=remote,
                use_safetensors=True,  # a pickle could run anything
            )
    else:
        config = _configuration(wanted, task, remote)
        field = "model.config" if wanted.hub is None else "model.hub"
        with _refused(f"{field}: transformers cannot build this {config.model_type}"), device:
            model = auto.from_config(config, trust_remote_code=remote)
    # The cache of keys and values only serves generation: in training it costs memory.
    model.config.use_cache = False
    built: torch.nn.Module = model.float().train()
    return built


def _remote_code(wanted: Model, task: Task, trusted: bool) -> bool:
    """Whether the model of a hub is built by code that comes with it. Raises ManifestError unless that is trusted.

    Where transformers has the class, its own is taken, whatever else is offered and trusted: peers that trust and
    peers that do not must build the same model.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto import configuration_auto, modeling_auto

    with _refused(f"model.hub: cannot load {wanted.hub!r}"):
        values, _ = PretrainedConfig.get_config_dict(wanted.hub, revision=wanted.revision or "main")
        name, comes_with_code = str(values.get("model_type")), bool(values.get("auto_map"))
    built_in = name in getattr(modeling_auto, task.types) and name in configuration_auto.CONFIG_MAPPING_NAMES
    if built_in or not comes_with_code:
        return False
    if not trusted:
        raise ManifestError(
            f"model.hub: {wanted.hub!r} needs code that comes with it (auto_map in its config.json), which is not run; "
            "read that code, and only if you trust it start the peer with --trust-remote-code"
        )
    return True


def _configuration(wanted: Model, task: Task, remote: bool) -> Any:
    from transformers import AutoConfig

    if wanted.hub is not None:
        with _refused(f"model.hub: cannot load {wanted.hub!r}"):
            return AutoConfig.from_pretrained(wanted.hub, revision=wanted.revision or "main", trust_remote_code=remote)
    name = str(wanted.type)
    _check_type(name, task)
    for key in wanted.config:
        if key in RESERVED or key.startswith("_"):
            raise ManifestError(f"model.config.{key}: not for a manifest to say; leave it out")
    with _refused(f"model.config: not a configuration of {name}"):
        config = AutoConfig.for_model(name, **wanted.config)
    _check_keys(config, wanted.config)
    return config


def _check_type(name: str, task: Task) -> None:
    from transformers.models.auto import configuration_auto, modeling_auto

    types: Mapping[str, Any] = getattr(modeling_auto, task.types)
    if name in types and name in configuration_auto.CONFIG_MAPPING_NAMES:
        return
    close = difflib.get_close_matches(name, types, n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    if name in configuration_auto.CONFIG_MAPPING_NAMES:
        raise ManifestError(f"model.type: {name!r} has no {task.noun} in transformers{hint}")
    raise ManifestError(f"model.type: the installed transformers knows no model type {name!r}{hint}")


def _check_keys(config: Any, given: Mapping[str, Any]) -> None:
    """transformers keeps unknown keys as attributes that nothing reads: a typing error would go unnoticed."""
    try:
        default = type(config)()
    except Exception:
        return  # a few configurations have no default, and then there is nothing to compare with
    for key in given:
        if hasattr(config, key) and not hasattr(default, key):
            close = difflib.get_close_matches(key, default.to_dict(), n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise ManifestError(f"model.config.{key}: {config.model_type} knows no such key{hint}")


def _check_fit(manifest: Manifest, model: torch.nn.Module) -> None:
    if manifest.tokenizer.name == "bytes":
        check_vocabulary(model, BYTES_VOCABULARY)
    positions, length = max_positions(model), manifest.data.sequence_length
    if positions is not None and length > positions:
        raise ManifestError(f"data.sequence_length: {length} exceeds the model's {positions} positions")


def _embeddings(model: Any) -> int:
    """How many ids the model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def _text_config(model: torch.nn.Module) -> Any:
    """A model of text and more keeps the text's configuration in a part of its own."""
    config: Any = model.config
    return config.get_text_config()


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Hundreds of model classes, which share no base class of errors, read the manifest's values here.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ManifestError(f"{what}: {reason[:300]}") from error
