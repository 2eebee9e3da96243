"""What `waggle doctor` looks at on this machine: each check is a function that gives one verdict.

Where a peer would refuse to start, the check calls what refuses, so that both say the same line.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from peer.needs import in_units, memory
from swarm.addresses import parse_http
from swarm.errors import (
    DeviceError,
    ExitCode,
    IdentityError,
    MissingExtraError,
    StateError,
    UsageError,
    WaggleError,
)
from swarm.listening import check_free

if TYPE_CHECKING:
    from peer.config import PeerSettings
    from swarm.manifest import Manifest

LIBRARIES = ("hivemind", "torch", "transformers")
FEW_FILES = 1024
LITTLE_DISK_BYTES = 10**9
LITTLE_MEMORY_BYTES = 10**9
"""What the program itself takes, p2pd included, with room for activations of a small model."""


class Verdict(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table. advice: what to do, empty when all is well. exit_code: of a failure's kind."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""
    exit_code: ExitCode = ExitCode.OK


def checked(name: str, look: Callable[[], str]) -> Check:
    """What ``look`` tells, or the error that it raises: "what is wrong; what to do"."""
    try:
        return Check(name, Verdict.OK, look())
    except WaggleError as error:
        return failed(name, error)


def failed(name: str, error: WaggleError) -> Check:
    """The check that an error makes of itself."""
    detail, _, advice = str(error).partition("; ")
    return Check(name, Verdict.FAIL, detail, advice or "mend what it names", error.exit_code)


def warned(name: str, detail: str, advice: str) -> Check:
    """A check that keeps nobody from starting."""
    return Check(name, Verdict.WARN, detail, advice)


def versions() -> Iterator[Check]:
    """Python's, Waggle's and those of the libraries that decide what can be trained."""
    try:
        wanted = metadata.metadata("waggle")["Requires-Python"]
        needs = {one.name: one for one in map(Requirement, metadata.requires("waggle") or ()) if one.marker is None}
        ours = metadata.version("waggle")
    except metadata.PackageNotFoundError:
        yield warned("waggle", "a checkout that is not installed", "install it, so that its versions can be checked")
        return
    yield Check("waggle", Verdict.OK, ours)
    yield checked(
        "python", lambda: _supported("python", ".".join(map(str, sys.version_info[:3])), SpecifierSet(wanted))
    )
    for name in LIBRARIES:
        yield checked(name, lambda name=name: _supported(name, metadata.version(name), needs[name].specifier))  # type: ignore[misc]  # mypy cannot type the bound name


def _supported(name: str, version: str, wanted: SpecifierSet) -> str:
    if not wanted.contains(version, prereleases=True):
        raise MissingExtraError(f"{name} {version} is not supported, but {wanted}; install Waggle afresh")
    return f"{version} (supported: {wanted})"


def read_run(settings: PeerSettings) -> tuple[Check, Manifest | None, int]:
    """The manifest, and how many parameters its model has; None and 0 where there is none to look at."""
    from peer.tasks import count_parameters

    if not settings.run:
        return warned("run", "none given", "name it with --run, to check what it needs"), None, 0
    try:
        manifest, author = _find_run(settings)
        parameters = count_parameters(manifest, settings.trust_remote_code)
    except WaggleError as error:
        return failed("run", error), None, 0
    signed = f", signed by {author}" if author else ""
    return Check("run", Verdict.OK, f"{manifest.run_id}, {parameters:,} parameters{signed}"), manifest, parameters


def _find_run(settings: PeerSettings) -> tuple[Manifest, str | None]:
    """From the file, the copy of an earlier start, or the swarm; and who signed it. Raises WaggleError."""
    from peer.enrolment import load
    from swarm.manifest import Manifest
    from waggle.visit import look_up

    if settings.run_id is None:
        return Manifest.load(settings.run), None
    invitation = load(settings.data_dir, settings.run_id)
    if invitation is None:
        if not settings.initial_peers:
            raise UsageError(f"run: {settings.run} must be fetched from somebody: give --initial-peers too")
        invitation = asyncio.run(look_up(settings.run_id, settings.initial_peers))
    return invitation.manifest(), invitation.author


def extras(manifest: Manifest) -> Check:
    """Whether what is optional and needed by this run is installed."""
    from peer.data.hub import load_library

    def look() -> str:
        if manifest.data.source != "hub":
            return "none needed"
        load_library()
        return "hub is installed"

    return checked("extras", look)


def device(name: str) -> Check:
    """Whether the device is there."""
    import torch

    from peer.training import choose_device

    def look() -> str:
        try:
            found = choose_device(name)
        except RuntimeError as error:
            raise DeviceError(f"--device {name}: {error}; choose another or cpu") from error
        if found.type == "cuda":
            return f"{found} ({torch.cuda.get_device_name(found)})"
        return f"{found}, {torch.get_num_threads()} threads"

    return checked("device", look)


def memory_left(manifest: Manifest | None, parameters: int, device_name: str) -> Check:
    """Whether the run fits into the memory that is left, and with something to spare."""
    from peer.machine import check_memory, free_device_memory, free_memory
    from peer.training import choose_device

    free = free_memory()
    spare = free
    if manifest is not None:
        need = memory(manifest, parameters)
        try:
            on_device = free_device_memory(choose_device(device_name))
        except RuntimeError:  # it is not there, which another check says
            on_device = None
        try:
            check_memory(need, free, on_device)
        except WaggleError as error:
            return failed("memory", error)
        spare -= need.total if on_device is None else need.swarm
    detail = f"{in_units(free)} free, {in_units(free - spare)} needed beside activations and the program itself"
    if spare < LITTLE_MEMORY_BYTES:
        return warned("memory", detail, "close other programs: activations and the program take about 1 GB or more")
    return Check("memory", Verdict.OK, detail)


def disk(folder: Path, kept: int, manifest: Manifest | None, parameters: int) -> Check:
    """Whether the data directory can be written, is free for us, and has room. Makes no folder and leaves no file.

    kept: how many checkpoints are.
    """
    from peer.machine import check_disk, disk_bytes, free_disk
    from swarm.claims import can_write, holder

    need = 0 if manifest is None else disk_bytes(manifest, parameters, kept)
    try:
        where = can_write(folder)
        if folder.is_dir() and (who := holder(folder)):
            raise StateError(f"data_dir {folder}: in use by {who}; stop that peer, or choose another --data-dir")
        free = free_disk(where)
        check_disk(folder, need, free)
    except WaggleError as error:
        return failed("disk", error)
    detail = f"{folder}: {in_units(free)} free, {in_units(need)} needed"
    if free - need < LITTLE_DISK_BYTES:
        return warned("disk", detail, "free some space: models and data sets from a hub are kept on disk too")
    return Check("disk", Verdict.OK, detail)


def identity(path: Path) -> Check:
    """Whether the key is good and nobody lives with it."""
    from swarm.claims import holder
    from swarm.identity import Identity

    def look() -> str:
        if not path.exists():
            return f"{path} will be made at the first start"
        found = Identity.load_or_create(path)
        if who := holder(path):
            raise IdentityError(f"identity {path}: in use by {who}; stop that one, or choose another --identity")
        return found.peer_id

    return checked("identity", look)


def open_files() -> Check:
    """Each connection takes a few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return warned("open files", f"{soft} allowed", f"allow {FEW_FILES} or more: ulimit -n {FEW_FILES}")
    return Check("open files", Verdict.OK, f"{'any number' if soft == resource.RLIM_INFINITY else soft} allowed")


def ports(settings: PeerSettings) -> Iterator[Check]:
    """Whether what a peer listens on is free."""
    for name, flag, text, address in (
        ("http", "--http", settings.http, settings.http_address),
        ("p2pd metrics", "--p2pd-metrics", settings.p2pd_metrics, parse_http(settings.p2pd_metrics_address or "off")),
    ):
        if address is not None:
            yield _port(name, *address, text, flag)
    for maddr in [] if settings.client_mode else settings.host_maddrs:
        _, _, host, transport, port, *_ = maddr.split("/")
        yield _port("port", host, int(port), maddr, "--host-maddrs", udp=transport == "udp")


def _port(name: str, host: str, port: int, text: str, flag: str, *, udp: bool = False) -> Check:
    def look() -> str:
        check_free(host, port, text, flag, udp=udp)
        return f"{text} is free" if port else f"{text}: any free port"

    return checked(name, look)


def first_failure(checks: Sequence[Check]) -> ExitCode:
    """The exit code of the first check that failed; OK when none did."""
    return next((one.exit_code for one in checks if one.verdict is Verdict.FAIL), ExitCode.OK)
