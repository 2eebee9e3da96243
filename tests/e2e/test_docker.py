"""A volunteer's way: a fresh clone, .env, `docker compose up`. With a real engine; skipped where there is none.

The tests follow each other, as a person would: one swarm is built, watched, disturbed, joined and taken down.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.compose import BUILD_SECONDS, Project, docker, lacking
from tests.processes import until

LACKING = lacking()
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"needs a Docker engine: {LACKING}"),
    pytest.mark.timeout(1200),  # an image is built in it
]

PEERS = ("peer-1", "peer-2", "peer-3")
SWARM = ("swarm-bootstrap", *PEERS)
TAG = "e2e"
IMAGE = f"waggle:{TAG}"
START_SECONDS = 240.0  # four programs import torch at once, on as few as two cores
STEP_SECONDS = 120.0
DOWN_SECONDS = 15.0
# Any free port of this machine, so that a swarm that somebody runs is not in the way.
PORTS = ("PEER_HTTP_PORT", "PEER_PORT", "SWARM_BOOTSTRAP_HTTP_PORT", *(f"SWARM_PEER_{n}_HTTP_PORT" for n in (1, 2, 3)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("clone"), {"WAGGLE_TAG": TAG, **dict.fromkeys(PORTS, "0")})
    try:
        yield project
    finally:
        project.remove()
        docker("image", "rm", "--force", IMAGE)
        assert project.left() == {"containers": [], "networks": [], "volumes": []}


@pytest.fixture(scope="module")
def swarm(project: Project) -> Project:
    """The whole local swarm, built and started with the README's command; every service is healthy."""
    began = time.monotonic()
    project.compose("--profile", "swarm", "build", seconds=BUILD_SECONDS)
    built = time.monotonic()
    project.compose("--profile", "swarm", "up", "--detach", seconds=START_SECONDS)

    def healthy() -> bool:
        states = {name: project.inspect(name)["State"] for name in SWARM}
        assert all(state["Running"] for state in states.values()), project.compose("logs", "--tail", "20")
        return all(state["Health"]["Status"] == "healthy" for state in states.values())

    until(healthy, START_SECONDS, "all of the swarm is healthy")
    print(f"\nbuilt in {built - began:.0f} s, healthy {time.monotonic() - built:.0f} s later")
    return project


def test_what_each_command_starts(project: Project) -> None:
    def services(*profiles: str) -> set[str]:
        words = [word for profile in profiles for word in ("--profile", profile)]
        return set(project.compose(*words, "config", "--services").split())

    assert services() == {"peer"}, "plain docker compose up"
    assert services("bootstrap") == {"bootstrap"}
    assert services("swarm") == set(SWARM)
    assert services("monitoring") == {"prometheus", "grafana"}
    gpu = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")
    assert "capabilities:\n                - gpu" in project.compose(*gpu, "config")


def test_the_image(swarm: Project) -> None:
    def inside(command: str) -> str:
        return docker("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", command).strip()

    assert inside("id -u") == "10001"
    assert inside("for tool in cc gcc g++ make git rustc; do command -v $tool; done; true") == "", "no build tools"
    assert inside("ls -d /opt/waggle/lib/python*/site-packages/pip || true") == ""
    assert inside("python -c 'import torch; print(torch.version.cuda)'") == "None"
    assert inside("test -w /data && ls runs").split() == ["demo.toml", "fineweb-100m.toml"]
    size, base = (
        int(docker("image", "inspect", name, "--format", "{{.Size}}")) for name in (IMAGE, "python:3.11-slim")
    )
    print(f"\nthe image is {size / 1e6:.0f} MB, {base / 1e6:.0f} MB of them its base")


def test_containers_are_what_they_should_be(swarm: Project) -> None:
    for service in SWARM:
        container = swarm.inspect(service)
        assert container["HostConfig"]["ReadonlyRootfs"] and container["HostConfig"]["CapDrop"] == ["ALL"]
        (published,) = (one for one in container["NetworkSettings"]["Ports"].values() if one)
        assert [one["HostIp"] for one in published] == ["127.0.0.1"], "status and metrics are this machine's only"
        assert swarm.compose("exec", service, "cat", "/proc/1/comm").strip() == "tini"


def test_outer_steps_advance_and_digests_agree(swarm: Project) -> None:
    for service in PEERS:
        swarm.outer_steps_until(service, 4, STEP_SECONDS)
    histories = [swarm.commits(service) for service in PEERS]
    common = set.intersection(*(set(history) for history in histories))
    assert len(common) >= 3
    for outer_step in common:
        assert len({history[outer_step] for history in histories}) == 1, outer_step
    memory = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", swarm.inspect("swarm-bootstrap")["Id"])
    resident = swarm.get("swarm-bootstrap", "/status", 8081)["resident_bytes"]
    print(f"\nthe bootstrap's memory: {memory.split('/')[0].strip()}, resident without p2pd {resident / 1e6:.0f} MB")


def test_a_peer_leaves_in_order_and_comes_back_as_itself(swarm: Project) -> None:
    before = swarm.get("peer-3", "/status")
    began = time.monotonic()
    swarm.compose("stop", "peer-3")
    seconds = time.monotonic() - began
    assert swarm.inspect("peer-3")["State"]["ExitCode"] == 0
    assert seconds < DOWN_SECONDS
    print(f"\nleaving took {seconds:.1f} s")
    step = swarm.outer_step("peer-1")
    for service in ("peer-1", "peer-2"):
        swarm.outer_steps_until(service, step + 3, STEP_SECONDS)

    swarm.compose("start", "peer-3")
    step = swarm.outer_step("peer-1")
    swarm.outer_steps_until("peer-3", step + 1, START_SECONDS)
    assert swarm.get("peer-3", "/status")["peer_id"] == before["peer_id"]
    swarm.outer_steps_until("peer-3", step + 4, STEP_SECONDS)
    own, others = swarm.commits("peer-3"), swarm.commits("peer-1")
    again = [one for one in own if one > step and one in others]
    assert again and all(own[one] == others[one] for one in again), "it has the swarm's digests again"


def test_plain_docker_compose_up_joins_the_run_in_the_env_file(swarm: Project) -> None:
    (maddr,) = swarm.get("swarm-bootstrap", "/status", 8081)["maddrs"]
    swarm.set({"WAGGLE_RUN": "runs/demo.toml", "WAGGLE_INITIAL_PEERS": maddr, "WAGGLE_THREADS": "1"})
    swarm.compose("up", "--detach", seconds=START_SECONDS)
    swarm.outer_steps_until("peer", swarm.outer_step("peer-1") + 1, START_SECONDS)
    status = until(lambda: _in_a_group(swarm), STEP_SECONDS, "it takes part in a group of four")
    assert status["maddrs"] == [], "a container that nobody can dial says so"


def _in_a_group(swarm: Project) -> dict[str, object]:
    status = swarm.get("peer", "/status")
    return status if status.get("group_size") == 4 else {}


def test_what_cannot_work_is_told_in_one_line(swarm: Project) -> None:
    def run(code: int, *settings: str) -> str:
        # The volume of the peer is that of the one that runs.
        words = [word for setting in ("WAGGLE_DATA_DIR=/tmp/data", *settings) for word in ("--env", setting)]
        said = swarm.compose("run", "--rm", "--no-deps", *words, "peer", code=code)
        (line,) = (line for line in said.splitlines() if "waggle" in line and self_name not in line)
        return line

    self_name = swarm.name
    assert "initial_peers: '/ip4/1.2.3/tcp/1'" in run(2, "WAGGLE_INITIAL_PEERS=/ip4/1.2.3/tcp/1")
    assert "runs/nothing.toml" in run(3, "WAGGLE_RUN=runs/nothing.toml")


def test_down_is_quick_and_leaves_nothing_but_the_volumes(swarm: Project) -> None:
    processes = [process for service in (*SWARM, "peer") for process in _processes(swarm, service)]
    assert len(processes) >= 15, "tini, waggle and p2pd in each container"
    began = time.monotonic()
    swarm.compose("down")
    seconds = time.monotonic() - began
    print(f"\ndown took {seconds:.1f} s")
    assert seconds < DOWN_SECONDS
    left = swarm.left()
    assert not left["containers"] and not left["networks"]
    assert len(left["volumes"]) == 6, "identity and state of five programs, and the introduction"
    assert not [process for process in processes if process.is_running()]


def _processes(swarm: Project, service: str) -> list[psutil.Process]:
    rows = docker("top", swarm.inspect(service)["Id"], "-o", "pid").split()[1:]
    return [psutil.Process(int(pid)) for pid in rows]
