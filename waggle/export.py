"""`waggle export`: the newest checkpoint of a run as a plain transformers folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from swarm.errors import StateError, UsageError

if TYPE_CHECKING:
    import torch

    from peer.state.files import Checkpoint
    from swarm.manifest import Manifest

log = structlog.get_logger(__name__)


def export(data_dir: Path, run_id: str | None, output: Path) -> Path:
    """Writes a folder that ``from_pretrained`` loads; whole or not at all, and never over something else.

    Args:
        run_id: which run of the data directory; None where there is only one.

    Raises:
        UsageError: output is there already, or it is not clear which run is meant.
        StateError: there is no checkpoint that can be believed, or the folder cannot be written.
    """
    if output.exists():
        raise UsageError(f"--output {output}: is there already; choose another folder")
    manifest = saved_manifest(data_dir, run_id)
    model, checkpoint = _model_of(manifest, data_dir)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise StateError(f"--output {output}: cannot be written ({error.strerror})") from error
    try:
        model.save_pretrained(temporary)  # type: ignore[operator]  # every transformers model has it
        _save_tokenizer(manifest, temporary)
        (temporary / "README.md").write_text(_card(manifest, checkpoint), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(output)
    except OSError as error:
        raise StateError(f"--output {output}: cannot be written ({error.strerror}); free some space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def saved_manifest(data_dir: Path, run_id: str | None) -> Manifest:
    """The manifest of a run that left checkpoints in ``data_dir``. Raises UsageError, StateError, ManifestError."""
    from swarm.manifest import Manifest

    found = sorted(path.parent.name for path in (data_dir / "checkpoints").glob("*/manifest.json"))
    if run_id is None and len(found) > 1:
        raise UsageError(f"--run: {data_dir} holds several runs, choose one of {', '.join(found)}")
    if not found or (run_id is not None and run_id not in found):
        held = f"it holds {', '.join(found)}" if found else "it holds none"
        raise UsageError(f"--data-dir {data_dir}: no checkpoints of {run_id or 'any run'} ({held})")
    path = data_dir / "checkpoints" / (run_id or found[0]) / "manifest.json"
    try:
        return Manifest.from_canonical(path.read_bytes())
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror})") from error


def committed_model(manifest: Manifest, data_dir: Path) -> torch.nn.Module:
    """The model with the parameters of the newest checkpoint in ``data_dir``. Raises StateError."""
    return _model_of(manifest, data_dir)[0]


def _model_of(manifest: Manifest, data_dir: Path) -> tuple[torch.nn.Module, Checkpoint]:
    from peer.layout import Layout, write_parameters
    from peer.optimizers import outer_optimizer
    from peer.state.checkpoints import checkpoint_files, run_folder
    from peer.state.files import load_checkpoint
    from peer.tasks import build_model

    folder = run_folder(data_dir, manifest.run_id)
    files = checkpoint_files(folder)
    if not files:
        raise StateError(f"{folder}: no checkpoint yet; one is written every few outer steps and on leaving")
    model = build_model(manifest)
    slots = outer_optimizer(manifest.outer).slots
    checkpoint = load_checkpoint(files[0], manifest.run_id, Layout.of(model), slots)
    write_parameters(model, checkpoint.state.parameters)
    return model, checkpoint


def _save_tokenizer(manifest: Manifest, folder: Path) -> None:
    """The transformers tokenizer of the run; the built-in ``bytes`` is none, and the README says how it works."""
    if manifest.tokenizer.name == "bytes":
        return
    from transformers import AutoTokenizer

    name, revision = str(Path(manifest.tokenizer.name).expanduser()), manifest.tokenizer.revision
    AutoTokenizer.from_pretrained(name, revision=revision).save_pretrained(folder)


def _card(manifest: Manifest, checkpoint: Checkpoint) -> str:
    state = checkpoint.state
    work = checkpoint.chain[-1].link.work if checkpoint.chain else 0
    lines = [
        f"# {manifest.name}",
        "",
        manifest.description or f"Trained by the Waggle run {manifest.run_id}.",
        "",
        f"- run: {manifest.run_id}",
        f"- outer step: {state.outer_step}, {work} examples of {manifest.data.sequence_length} tokens",
        f"- digest of the committed state: {state.digest}",
    ]
    if manifest.tokenizer.name == "bytes":
        lines.append("- tokens: the bytes of UTF-8 text, 0 to 255; 256 ends a text. No tokenizer is needed")
    return "\n".join([*lines, ""])
