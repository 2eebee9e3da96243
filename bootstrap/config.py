"""The settings of a bootstrap: where it listens, who it is, which other bootstraps it knows."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from swarm.settings import AnnounceMaddrs, File, HostMaddrs, HostPort, InitialPeers, RelayService, Settings


class BootstrapSettings(Settings):
    """Flags > WAGGLE_BOOTSTRAP_* > file > default. `BootstrapSettings.load` reports mistakes for people."""

    model_config = SettingsConfigDict(env_prefix="WAGGLE_BOOTSTRAP_")

    host_maddrs: HostMaddrs = Field(default=["/ip4/0.0.0.0/tcp/31337"])
    announce_maddrs: AnnounceMaddrs = Field(default=[])
    identity: File = Field(
        default=Path("~/.waggle/bootstrap.key"),
        description="The key that makes the peer id, which everybody's initial_peers name: keep it.",
    )
    initial_peers: InitialPeers = Field(default=[])
    introduction: File | None = Field(
        default=None,
        description="A settings file to write, with our addresses as initial_peers: for the --config of peers that "
        "share a disk with us.",
    )
    relay_service: RelayService = True
    http: HostPort = "127.0.0.1:8081"
