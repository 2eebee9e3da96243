"""Docker Compose for tests: one project in a fresh copy of the repository, of which nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.processes import REPOSITORY, Json, until

BUILD_SECONDS = 900.0  # the first time, everything is downloaded
COMMAND_SECONDS = 120.0
# What a clone does not have.
_NOT_IN_A_CLONE = (
    ".git",
    ".venv*",
    ".env",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "*.egg-info",
    "waggle-demo",
)


def lacking() -> str:
    """Why no containers can be run here; empty when they can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    for command, what in (
        (["docker", "version", "--format", "{{.Server.Version}}"], "no Docker engine answers"),
        (["docker", "compose", "version"], "docker has no compose plugin"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            return f"{what}: {done.stderr.strip() or done.stdout.strip()}"
    return ""


def docker(*words: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a docker command prints. Raises AssertionError with its last words when it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


class Project:
    """A copy of the repository as ``git clone`` makes it, ``cp .env.example .env``, and what compose does with it.

    changes: lines to put behind those of .env.example; the later of two wins.
    """

    def __init__(self, folder: Path, changes: Mapping[str, str]):
        self.name = f"waggle-e2e-{os.getpid()}"
        self.folder = folder / "waggle"
        shutil.copytree(REPOSITORY, self.folder, ignore=shutil.ignore_patterns(*_NOT_IN_A_CLONE))
        shutil.copy(self.folder / ".env.example", self.folder / ".env")
        self.set(changes)

    def set(self, changes: Mapping[str, str]) -> None:
        """Changes .env."""
        with (self.folder / ".env").open("a", encoding="utf-8") as file:
            file.write("".join(f"{name}={value}\n" for name, value in changes.items()))

    def compose(self, *words: str, seconds: float = COMMAND_SECONDS, code: int = 0) -> str:
        """What ``docker compose ...`` prints, with standard error behind it. Raises AssertionError as `docker` does."""
        # A variable in the shell wins over .env: a test must not depend on whose shell it is.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("WAGGLE_", "COMPOSE_"))
        }
        done = subprocess.run(
            ["docker", "compose", "-p", self.name, *words], cwd=self.folder, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == code, f"docker compose {' '.join(words)}: exit code {done.returncode}\n{said[-4000:]}"
        return said

    def inspect(self, service: str) -> Json:
        """The container of a service, as the engine knows it, running or not; {} without one."""
        label = ["--filter", f"label=com.docker.compose.project={self.name}"]
        label += ["--filter", f"label=com.docker.compose.service={service}"]
        found = docker("ps", "--all", "--quiet", *label).split()
        container: Json = json.loads(docker("inspect", found[0]))[0] if found else {}
        return container

    def left(self) -> dict[str, list[str]]:
        """What the engine still has of this project."""
        label = ["--filter", f"label=com.docker.compose.project={self.name}", "--quiet"]
        return {
            "containers": docker("ps", "--all", *label).split(),
            "networks": docker("network", "ls", *label).split(),
            "volumes": docker("volume", "ls", *label).split(),
        }

    def get(self, service: str, path: str, port: int = 8080) -> Json:
        """A page in JSON at the port of this machine that leads to the service; {} while it does not answer."""
        address = self.compose("port", service, str(port)).strip()
        try:
            with httpx.Client(trust_env=False, timeout=10) as client:
                page: Json = client.get(f"http://{address}{path}").json()
        except httpx.HTTPError:  # it is starting or stopping
            return {}
        return page

    def commits(self, service: str) -> dict[int, str]:
        """outer step -> digest of what a peer has committed or downloaded, out of the journal in its volume."""
        lines = [json.loads(line) for line in self.compose("exec", service, "cat", "/data/journal.jsonl").splitlines()]
        return {line["outer_step"]: line["digest"] for line in lines if line["event"] in ("commit", "download")}

    def outer_step(self, service: str) -> int:
        """As /status says; 0 while it does not answer."""
        return int(self.get(service, "/status").get("outer_step", 0))

    def outer_steps_until(self, service: str, outer_step: int, seconds: float) -> None:
        """Waits until a peer has this outer step. Raises AssertionError with everybody's last log lines."""
        try:
            until(lambda: self.outer_step(service) >= outer_step, seconds, f"outer step {outer_step} of {service}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '20')}") from error

    def remove(self) -> None:
        """Ends and removes all of it, volumes and data too."""
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "10", seconds=300)
