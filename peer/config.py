"""The local settings of a peer: addresses, paths, device, limits. What all peers share is the manifest's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from swarm.manifest import is_run_id
from swarm.settings import AnnounceMaddrs, File, HostMaddrs, InitialPeers, Metavar, RelayService, Settings

_EXAMPLE_RUN = "demo@0123456789abcdef"


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise ValueError(f"'{text}' is not a device; expected auto, cpu, cuda or cuda:INDEX")
    return text


def _shard(text: str) -> str:
    _parse_shard(text)
    return text


def _parse_shard(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(f"'{text}' is not a shard; expected I/N with I from 0 to N-1, e.g. 0/4")
    return int(match[1]), int(match[2])


def run_name(text: str) -> str:
    """A run id, or a file with ``~`` expanded. Raises ValueError for what was meant to be a run id and is none."""
    if is_run_id(text):
        return text
    if re.fullmatch(r"[^/.]*@[^/.]*", text):  # a path with an @ in it has a folder or an ending
        raise ValueError(f"'{text}' is not a run id; expected NAME@DIGEST with 16 hex digits, e.g. {_EXAMPLE_RUN}")
    return str(Path(text).expanduser()) if text.startswith("~") else text


class PeerSettings(Settings):
    """Flags > WAGGLE_* > file > default. `PeerSettings.load` reports mistakes for people."""

    model_config = SettingsConfigDict(env_prefix="WAGGLE_")

    run: Annotated[str, AfterValidator(run_name), Metavar("RUN")] = Field(
        min_length=1,
        description="The run to take part in: its id, NAME@DIGEST, from an invitation; or its manifest, a TOML file. "
        "Needed.",
    )
    initial_peers: InitialPeers = Field(default=[])
    host_maddrs: HostMaddrs = Field(default=["/ip4/0.0.0.0/tcp/0"])
    announce_maddrs: AnnounceMaddrs = Field(default=[])
    data_dir: File = Field(
        default=Path("~/.waggle"), description="Where identity, journal and committed state are kept."
    )
    identity: File | None = Field(
        default=None,
        description="The key that makes the peer id; identity.key in the data directory by default.",
    )
    client_mode: bool = Field(default=False, description="Never listen, only dial: for a peer that nobody can reach.")
    device: Annotated[str, AfterValidator(_device), Metavar("auto|cpu|cuda[:i]")] = Field(
        default="auto", description="Where to train; auto is cuda when there is one, else cpu."
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads for training, and for encoding and averaging; 0 leaves it to torch."
    )
    max_outer_steps: int | None = Field(
        default=None, ge=1, description="Leave once this outer step of the run is committed; else go on."
    )
    join_timeout_seconds: Annotated[float, Metavar("SECONDS")] = Field(
        default=0.0, ge=0, description="Give up when no initial peer answers for so long; 0 tries for ever."
    )
    relay_service: RelayService = False
    auto_relay: bool = Field(
        default=False, description="Find a relay when others cannot dial us, and be reached through it."
    )
    data_shard: Annotated[str, AfterValidator(_shard), Metavar("I/N")] = Field(
        default="", description="Read the I-th of N shares of the data; empty derives it from the peer id."
    )

    uploads: int = Field(
        default=4, ge=1, le=64, description="How many peers may download the committed state from us at once."
    )
    upload_rate_bytes: int = Field(
        default=0, ge=0, description="Bytes per second for all of them together; 0 sets no limit."
    )
    checkpoint_every: int = Field(
        default=10, ge=1, description="Write a checkpoint after so many outer steps; one is written on leaving, too."
    )
    checkpoints_kept: int = Field(default=2, ge=1, description="How many checkpoints to keep: the newest.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with a model of a hub, where transformers does not have its class. "
        "Whoever wrote that code can then do all that you can do on this machine.",
    )

    @property
    def run_id(self) -> str | None:
        """The run id that ``run`` is, or None when it is a file."""
        return self.run if is_run_id(self.run) else None

    @property
    def identity_path(self) -> Path:
        """The key file, wherever it is."""
        return self.identity or self.data_dir / "identity.key"

    @property
    def shard(self) -> tuple[int, int] | None:
        """(i, n) of data_shard, or None when the peer id decides."""
        return _parse_shard(self.data_shard)
