"""Whole programs for tests: bootstraps and peers as processes, what they say, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TextIO, TypeVar

import httpx
import psutil

from peer.state.checkpoints import checkpoint_files
from swarm import launcher
from tests.nursery import REPOSITORY, Nursery, Process

T = TypeVar("T")
Json = dict[str, Any]

LOCAL = "/ip4/127.0.0.1/tcp/0"
START_SECONDS = 120.0  # importing torch takes seconds, and many on a busy machine
COMMIT_SECONDS = 90.0
_LOOK_SECONDS = 0.05


def until(condition: Callable[[], T], seconds: float, what: str, programs: Sequence[Program] = ()) -> T:
    """Looks again and again until ``condition`` gives something true, and returns that.

    Raises AssertionError after ``seconds``, with the last words of ``programs``.
    """
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError("\n".join([f"not within {seconds:.0f} s: {what}", *(one.words for one in programs)]))
        time.sleep(_LOOK_SECONDS)


def running(folder: Path) -> dict[int, str]:
    """All live processes, whoever their parent is, that name something in ``folder``: process id and program."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status", "pid"]):
        command = process.info["cmdline"] or [""]
        alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.info["pid"] != os.getpid()
        if alive and f"{folder}{os.sep}" in " ".join(command):
            found[process.info["pid"]] = Path(command[0]).name
    return found


def json_lines(path: Path, begin: int = 0) -> Iterator[Json]:
    """The JSON objects of a file from byte ``begin`` on, a half-written last line left out."""
    if path.exists():
        for line in path.read_bytes()[begin:].decode(errors="replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("}\n"):
                yield json.loads(line)


class Program:
    """A process that writes into files of its ``folder`` and dies with the test.

    The folder's name is in its command line and in that of its p2pd: that is how both are found again.
    nursery: where Python programs are forked that shall not spend their time on imports; None: none is.
    """

    nursery: ClassVar[Nursery | None] = None

    def __init__(self, folder: Path, command: Sequence[str]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, folder.name
        self.signalled_at = 0.0
        self.out, self.err = folder / "stdout", folder / "stderr"
        self._began_at = self.err.stat().st_size if self.err.exists() else 0  # an earlier life has said something
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
        environment["OMP_NUM_THREADS"] = "1"
        self.process: Process
        if self.nursery is not None and command[0] == sys.executable and command[1] in ("-c", "-m"):
            self.process = self.nursery.start(command, self.out, self.err, environment)
            return
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=REPOSITORY, start_new_session=True,
                env=environment,
            )  # fmt: skip

    @property
    def logs(self) -> list[Json]:
        """What it logged in this life."""
        return list(json_lines(self.err, self._began_at))

    @property
    def words(self) -> str:
        """The end of its log, for messages."""
        lines = self.err.read_text(encoding="utf-8", errors="replace").splitlines()
        shown = [line if len(line) < 500 else f"{line[:500]}..." for line in lines[-20:]]
        return "\n".join([f"--- {self.name} (exit code {self.process.poll()})", *shown])

    def said(self, event: str) -> Json | None:
        """The newest log line with this event."""
        return next((line for line in reversed(self.logs) if line.get("event") == event), None)

    def hear(self, event: str, seconds: float = START_SECONDS) -> Json:
        """Waits for a log line; fails at once when the process ends without it."""

        def heard() -> Json | None:
            ended = self.process.poll() is not None
            line = self.said(event)
            assert line or not ended, f"it ended without '{event}'\n{self.words}"
            return line

        found = until(heard, seconds, f"'{event}' from {self.name}", [self])
        assert found is not None
        return found

    @property
    def p2pds(self) -> list[int]:
        """The process ids of its p2pd, which should be one while it lives and none afterwards."""
        return [pid for pid, name in running(self.folder).items() if name == "p2pd"]

    def signal(self, signum: signal.Signals) -> None:
        """Sends a signal. ``signalled_at``: when the last one was sent, in Unix time."""
        self.signalled_at = time.time()
        self.process.send_signal(signum)

    def wait(self, seconds: float) -> int:
        """The exit code. Raises AssertionError when it lives on."""
        until(lambda: self.process.poll() is not None, seconds, f"the end of {self.name}", [self])
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Daemon(Program):
    """A bootstrap or a peer of ours."""

    started = ""

    def flags(self) -> list[str]:
        """What every daemon in a test is started with; later flags win."""
        return ["--http", "127.0.0.1:0", "--no-nat-port-map", "--log-format", "json"]

    @property
    def url(self) -> str:
        """Where it serves HTTP; waits for its start."""
        return str(self.hear(self.started)["http"])

    def get(self, path: str) -> httpx.Response:
        """A page of it."""
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.get(self.url + path)

    @property
    def status(self) -> Json:
        """/status."""
        status = self.get("/status").json()
        assert isinstance(status, dict)
        return status

    @property
    def maddrs(self) -> list[str]:
        """Its addresses as others are given them."""
        return list(self.status["maddrs"])


class Bootstrap(Daemon):
    """``python -m bootstrap``."""

    started = "bootstrap started"

    def __init__(self, folder: Path, *flags: str, host_maddr: str = LOCAL):
        own = ["--identity", str(folder / "identity.key"), "--host-maddrs", host_maddr]
        super().__init__(folder, [sys.executable, "-m", "bootstrap", *own, *self.flags(), *flags])


# python -m peer, once all is imported that it would import when it has read its manifest.
PEER = "import peer.daemon, transformers.models.gpt2.modeling_gpt2; from peer.command import main; main()"


class Peer(Daemon):
    """A peer. Its manifest comes through a pipe: one that has imported all it needs can wait to be released."""

    started = "peer started"
    code = PEER

    def __init__(self, folder: Path, manifest: str, *flags: str, initial_peers: Sequence[str] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest, self._pipe = manifest, folder / "run.toml"
        self._writer: TextIO | None = None
        if not self._pipe.exists():
            os.mkfifo(self._pipe)
        own = ["--run", str(self._pipe), "--data-dir", str(folder), "--threads", "1", "--device", "cpu"]
        listen = [] if {"--host-maddrs", "--client-mode"} & set(flags) else ["--host-maddrs", LOCAL]
        met = [word for maddr in initial_peers for word in ("--initial-peers", maddr)]
        super().__init__(folder, [sys.executable, "-c", self.code, *own, *listen, *met, *self.flags(), *flags])

    @property
    def released(self) -> bool:
        """Whether it has its manifest."""
        return not self._manifest

    def prepare(self) -> Peer:
        """Waits until it has imported all it needs and waits for its manifest."""

        def open_pipe() -> bool:
            assert self.process.poll() is None, self.words
            try:  # not blocking: a process that died would never open the other end
                self._writer = os.fdopen(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
            except OSError:
                return False
            return True

        if self._writer is None:
            until(open_pipe, START_SECONDS, f"{self.name} waits for its manifest", [self])
        return self

    def release(self) -> Peer:
        """Lets it read its manifest, which is when it begins."""
        self.prepare()
        assert self._writer is not None
        with self._writer as writer:
            writer.write(self._manifest)
        self._manifest = ""
        return self

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        super().kill()
        if self._writer is not None:
            self._writer.close()

    @property
    def journal(self) -> list[Json]:
        """Its journal so far."""
        return list(json_lines(self.folder / "journal.jsonl"))

    def events(self, event: str) -> list[Json]:
        """Journal lines of one kind."""
        return [line for line in self.journal if line["event"] == event]

    @property
    def digests(self) -> dict[int, str]:
        """Of what it committed, by outer step."""
        return {event["outer_step"]: event["digest"] for event in self.events("commit")}

    @property
    def outer_step(self) -> int:
        """Of its newest commit; 0 before."""
        return max((line["outer_step"] for line in self.events("commit")), default=0)

    @property
    def checkpoints(self) -> list[Path]:
        """The files of its checkpoints, the newest first."""
        return [path for folder in (self.folder / "checkpoints").glob("*") for path in checkpoint_files(folder)]

    def commits_until(self, outer_step: int, seconds: float = COMMIT_SECONDS) -> None:
        """Waits until it has committed this outer step."""

        def there() -> bool:
            assert self.process.poll() is None or self.outer_step >= outer_step, self.words
            return self.outer_step >= outer_step

        until(there, seconds, f"outer step {outer_step} of {self.name}", [self])

    def phase_is(self, phase: str, seconds: float = COMMIT_SECONDS) -> Json:
        """Waits until /status shows this phase, and returns that status."""
        what = f"{self.name} is {phase}"
        return until(lambda: _if(self.status, lambda status: status["phase"] == phase), seconds, what, [self])


class Volunteer(Peer):
    """A peer as a volunteer starts it: with a run id, and whom to ask. The same data directory is the same peer."""

    def __init__(self, folder: Path, run_id: str, *flags: str, initial_peers: Sequence[str] = ()):
        self._manifest, self._writer = "", None
        own = ["--run", run_id, "--data-dir", str(folder), "--threads", "1", "--device", "cpu", "--host-maddrs", LOCAL]
        met = [word for maddr in initial_peers for word in ("--initial-peers", maddr)]
        Program.__init__(self, folder, [sys.executable, "-c", PEER, *own, *met, *self.flags(), *flags])


def _if(value: Json, condition: Callable[[Json], bool]) -> Json:
    return value if condition(value) else {}


class House:
    """All programs of a test. Leaving it asks every one to leave, in order, and sees that nothing is left."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.programs: list[Program] = []

    def bootstrap(self, name: str, *flags: str, host_maddr: str = LOCAL) -> Bootstrap:
        """Starts a bootstrap; the same name again is the same identity."""
        return self._add(Bootstrap(self.folder / name, *flags, host_maddr=host_maddr))

    def hold(self, name: str, manifest: str, *flags: str, initial_peers: Sequence[str] = ()) -> Peer:
        """Starts a peer that waits to be released; the same name again is the same peer."""
        return self._add(Peer(self.folder / name, manifest, *flags, initial_peers=initial_peers))

    def peer(self, name: str, manifest: str, *flags: str, initial_peers: Sequence[str] = ()) -> Peer:
        """Starts a peer."""
        return self.hold(name, manifest, *flags, initial_peers=initial_peers).release()

    def train(
        self, flags: Mapping[str, Sequence[str]], manifest: str, until: int, initial_peers: Sequence[str]
    ) -> list[Peer]:
        """A peer for each name commits until this outer step and leaves; all begin at the same moment.

        Each has an equal share of the data, so that runs are alike. flags: of each peer, by its name.
        """
        peers = [
            self.hold(
                name, manifest, "--max-outer-steps", str(until), "--data-shard", f"{index}/{len(flags)}", *own,
                initial_peers=initial_peers,
            )
            for index, (name, own) in enumerate(flags.items())
        ]  # fmt: skip
        for peer in peers:
            peer.prepare()
        for peer in peers:
            peer.release()
        for peer in peers:
            assert peer.wait(START_SECONDS) == 0, peer.words
        return peers

    def volunteer(self, name: str, run_id: str, *flags: str, initial_peers: Sequence[str] = ()) -> Volunteer:
        """Starts a peer that knows its run by the id only."""
        return self._add(Volunteer(self.folder / name, run_id, *flags, initial_peers=initial_peers))

    def program(self, name: str, command: Sequence[str]) -> Program:
        """Starts any program; its command line must name something in its folder."""
        return self._add(Program(self.folder / name, command))

    P = TypeVar("P", bound=Program)

    def _add(self, program: P) -> P:
        self.programs.append(program)
        return program

    def leave(self) -> None:
        """SIGTERM to all that run: ours end with 0, and take their p2pd with them."""
        asked = [one for one in self.programs if one.process.poll() is None]
        for program in asked:
            if isinstance(program, Peer) and not program.released:
                program.kill()  # nobody let it begin
            else:
                program.signal(signal.SIGTERM)
        codes = {program.name: program.wait(30) for program in asked}
        unclean = [
            one.words for one in asked if isinstance(one, Daemon) and codes[one.name] not in (0, -signal.SIGKILL)
        ]
        assert not unclean, "\n".join(unclean)
        until(lambda: not running(self.folder), 10, f"nothing is left, but there is {running(self.folder)}")

    def __enter__(self) -> House:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.leave()
        finally:
            for program in self.programs:
                program.kill()


MANIFEST = """
waggle = 1
name = "tiny"

[model]
type = "gpt2"
config = { n_layer = 1, n_head = 2, n_embd = 16, n_positions = 32, vocab_size = 257, bos_token_id = 256, \
eos_token_id = 256, resid_pdrop = 0.0, embd_pdrop = 0.0, attn_pdrop = 0.0 }

[tokenizer]
name = "bytes"

[data]
source = "text"
paths = ["%(corpus)s"]
sequence_length = 32
batch_size = 2

%(optimizers)s

[round]
average = "%(average)s"
%(round)s

[validation]
fraction = 0.1
examples = 8
every = 5
"""
OPTIMIZERS = {
    "gradients": '[outer]\noptimizer = "adamw"\nlearning_rate = 0.003',
    "updates": '[inner]\noptimizer = "adamw"\nlearning_rate = 0.003\n[outer]\noptimizer = "sgd"\nlearning_rate = 1.0',
}
ROUND: Mapping[str, Any] = {
    "inner_steps": 20,
    "patience_seconds": 5.0,
    "assemble_seconds": 5.0,
    "exchange_seconds": 5.0,
    "commit_seconds": 5.0,
}


def manifest(corpus: Path, average: str = "updates", **rules: Any) -> str:
    """A run of a model so small that the rest of a peer is all there is; ``rules`` are of [round]."""
    codec = {"gradients": "fp32", "updates": "fp16"}[average]
    lines = {**ROUND, "codec": codec, **rules}
    return MANIFEST % {
        "corpus": corpus,
        "average": average,
        "optimizers": OPTIMIZERS[average],
        "round": "\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items()),
    }


def write_corpus(path: Path) -> Path:
    """Some 200 KB of words, always the same."""
    words = ["honey", "flower", "dance", "hive", "sun", "east", "wing", "clover", "queen", "comb", "swarm", "nectar"]
    chosen = random.Random(0).choices(words, k=32_000)
    lines = [" ".join(chosen[start : start + 12]) for start in range(0, len(chosen), 12)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
