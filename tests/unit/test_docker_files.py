"""What Docker is given agrees with the rest: every setting can be set, every line of .env.example is explained."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bootstrap.config import BootstrapSettings
from peer.config import PeerSettings
from swarm.settings import Settings, catalogue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if str(one["image"]).startswith("waggle:")}
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# A line that sets something, or would without its "#"; "#   NAME=" is an example in an explanation.
ASSIGNMENT = re.compile(r"^#?([A-Z][A-Z0-9_]*)=(.*)$")


def variables(settings: type[Settings]) -> set[str]:
    return {setting.variable for setting in catalogue(settings)}


def passed(service: str) -> set[str]:
    """The settings among the environment of a service."""
    return {name for name in SERVICES[service]["environment"] if name.startswith("WAGGLE_")}


def in_example() -> dict[str, str]:
    """variable -> value of every line in .env.example, commented out or not."""
    found = [match for line in ENV_EXAMPLE.splitlines() if (match := ASSIGNMENT.match(line))]
    return {match[1]: match[2] for match in found}


@pytest.mark.parametrize("service, settings", [("peer", PeerSettings), ("bootstrap", BootstrapSettings)])
def test_every_setting_reaches_the_container(service: str, settings: type[Settings]) -> None:
    assert passed(service) == variables(settings), f"docker-compose.yml: services.{service}.environment"


@pytest.mark.parametrize("service", OURS)
def test_a_service_is_given_no_setting_that_is_none(service: str) -> None:
    assert passed(service) <= variables(PeerSettings) | variables(BootstrapSettings)


def test_the_example_has_every_variable_that_compose_reads_and_no_other() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    read = set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    read |= {name for one in OURS.values() for name, value in one["environment"].items() if value is None}
    assert set(in_example()) == read | {"COMPOSE_PROFILES"}


def test_the_example_tells_the_defaults() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"\$\{([A-Z0-9_]+):?-([^}]*)\}", text))
    told = in_example()
    assert {name: told[name] for name in defaults} == defaults


def test_every_line_of_the_example_is_explained() -> None:
    explained = False
    for number, line in enumerate(ENV_EXAMPLE.splitlines(), 1):
        if ASSIGNMENT.match(line):
            assert explained, f".env.example:{number}: nothing says what it is for"
        else:
            explained = line.startswith("# ") and not line.startswith("# --")


def test_without_a_profile_nothing_starts_and_the_example_starts_one_peer() -> None:
    assert all(one["profiles"] for one in SERVICES.values())
    assert in_example()["COMPOSE_PROFILES"] == "peer"
    assert [name for name, one in SERVICES.items() if "peer" in one["profiles"]] == ["peer"]


def test_each_profile_builds_its_image_once() -> None:
    for profile in ("peer", "bootstrap", "swarm"):
        members = [one for one in OURS.values() if profile in one["profiles"]]
        assert sum("build" in one for one in members) == 1, profile


def test_http_is_published_on_loopback_only() -> None:
    for name, service in SERVICES.items():
        for port in service["ports"]:
            inner = port.split("/")[0].rpartition(":")[2]
            assert port.startswith("127.0.0.1:") or inner in ("31337", "31338"), f"{name}: {port}"


def test_programs_of_no_other_project_are_needed_to_build() -> None:
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(images) == {"${PYTHON_IMAGE}"}
    assert not DOCKERFILE.startswith("# syntax="), "it would be fetched from a registry"


def test_the_build_is_given_every_package_and_little_else() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line]
    allowed = {line[1:] for line in lines if line.startswith("!")}
    names = {package.rstrip("*") for package in packages}
    assert lines[1] == "*"
    assert allowed == names | {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "runs"}
    assert all(f"COPY {name} {name}" in DOCKERFILE for name in names)


def test_the_label_tells_the_version() -> None:
    assert f"ARG VERSION={PROJECT['project']['version']}\n" in DOCKERFILE
