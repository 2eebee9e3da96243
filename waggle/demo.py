"""`waggle demo`: a bootstrap and some peers on this machine train one model, and you watch."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live

from swarm.errors import NetworkError, WaggleError
from swarm.manifest import Manifest
from waggle.processes import Child, Processes
from waggle.report import Report, draw_loss, read_journals, render_progress, sample_text, summary

MANIFEST = Path(__file__).resolve().parent.parent / "runs" / "demo.toml"
_START_SECONDS = 120.0
_STALL_SECONDS = 180.0
_LOOK_SECONDS = 0.5


def demo(peers: int, outer_steps: int, as_json: bool, output: Path) -> None:
    """Runs the demo and prints what was learned.

    Args:
        output: where logs, journals and the plot are left; identities and state are not kept.

    Raises:
        WaggleError: a process failed, or the swarm stalled.
        KeyboardInterrupt: somebody asked the demo to end. Nothing is left running either way.
    """
    manifest = Manifest.load(MANIFEST)
    console = Console(stderr=as_json)
    console.print(
        f"[bold]{manifest.run_id}[/]: {peers} peers, {outer_steps} outer steps, logs in {output}/ (Ctrl-C ends it all)"
    )
    began = time.monotonic()
    with ExitStack() as stack:
        stop = _stop_on_signals(stack)
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waggle-demo-")))
        _clear(output)
        processes = stack.enter_context(Processes(output))
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=1.0))
        children = start_swarm(processes, MANIFEST, keys, peers, outer_steps, stop)
        follow(processes, children, client, console, stop)
        seconds = time.monotonic() - began
        report = read_journals(manifest, [child.folder for child in children])
        sample = sample_text(manifest, children[0].folder)
    plot = draw_loss(report, output / "loss.png")
    _tell(console, report, sample, plot, seconds)
    if as_json:
        sys.stdout.write(json.dumps(summary(report, seconds)) + "\n")
    if not report.agreed:
        raise WaggleError(f"the peers did not agree on every outer step; their journals are in {output}/")


def _stop_on_signals(stack: ExitStack) -> threading.Event:
    """SIGINT and SIGTERM ask the demo to end in order."""
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        stack.callback(signal.signal, signum, signal.signal(signum, ask))
    return stop


def _clear(output: Path) -> None:
    """Removes what an earlier demo left, and nothing else."""
    for old in [*output.glob("*/journal.jsonl"), output / "loss.png"]:
        old.unlink(missing_ok=True)
    for old in output.glob("peer-*/checkpoints"):
        shutil.rmtree(old)


def start_swarm(
    processes: Processes, manifest: Path, keys: Path, peers: int, outer_steps: int, stop: threading.Event
) -> list[Child]:
    """Starts a bootstrap and ``peers`` peers on loopback, each with its share of the data; returns the peers.

    keys: a folder for their identities.
    """
    quiet = {"WAGGLE_LOG_FORMAT": "json", "WAGGLE_BOOTSTRAP_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1"}
    loopback = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--no-nat-port-map", "--http", "127.0.0.1:0"]
    bootstrap = processes.start("bootstrap", "bootstrap", [*loopback, "--identity", str(keys / "bootstrap.key")], quiet)
    maddr = introduction(processes, bootstrap, stop)
    return [
        processes.start(
            f"peer-{index}",
            "peer",
            [
                *loopback, "--run", str(manifest), "--initial-peers", maddr, "--threads", "1",
                "--data-dir", str(processes.folder / f"peer-{index}"), "--identity", str(keys / f"{index}.key"),
                "--data-shard", f"{index}/{peers}", "--max-outer-steps", str(outer_steps),
            ],
            quiet,
        )
        for index in range(peers)
    ]  # fmt: skip


def introduction(processes: Processes, bootstrap: Child, stop: threading.Event) -> str:
    """The multiaddr that the bootstrap prints."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        words = (bootstrap.folder / "out.txt").read_text().split()
        if "--initial-peers" in words and len(words) > words.index("--initial-peers") + 1:
            return words[words.index("--initial-peers") + 1]
        processes.check()
        if stop.wait(0.1):
            raise KeyboardInterrupt
    raise NetworkError(f"the bootstrap did not start within {_START_SECONDS:.0f} s; see {bootstrap.log}")


def follow(
    processes: Processes, children: Sequence[Child], client: httpx.Client, console: Console, stop: threading.Event
) -> None:
    """Shows the table until every peer has done its outer steps."""
    moved = (time.monotonic(), -1)
    live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None
    with live or ExitStack():
        while any(child.process.poll() is None for child in children):
            for child in children:
                child.refresh(client)
            processes.check()
            step = max((_step(child) for child in children), default=0)
            if step != moved[1]:
                moved = (time.monotonic(), step)
                if live is None and step > 0:
                    console.print(_line(step, children), soft_wrap=True)
            elif time.monotonic() - moved[0] > _STALL_SECONDS:
                raise WaggleError(
                    f"nothing was committed for {_STALL_SECONDS:.0f} s; see {processes.folder}/*/log.jsonl"
                )
            if live is not None:
                live.update(render_progress({child.name: child.status for child in children}))
            if stop.wait(_LOOK_SECONDS):
                raise KeyboardInterrupt
    processes.check()


def _step(child: Child) -> int:
    value: Any = child.status.get("outer_step", 0)
    return int(value)


def _line(step: int, children: Sequence[Child]) -> str:
    losses = [child.status.get("loss") for child in children]
    known = [float(loss) for loss in losses if loss is not None]
    loss = f"{sum(known) / len(known):.3f}" if known else "-"
    digest = max((child.status for child in children), key=lambda status: int(status.get("outer_step", 0)))["digest"]
    return f"outer step {step:3d}  loss {loss}  digest {str(digest)[:12]}"


def _tell(console: Console, report: Report, sample: str, plot: Path, seconds: float) -> None:
    fall = 1 - report.loss_last / report.loss_first
    console.print(
        f"\nvalidation loss [bold]{report.loss_first:.3f}[/] -> [bold]{report.loss_last:.3f}[/] (-{fall:.0%}) in "
        f"{report.outer_steps} outer steps and {seconds:.0f} s, start included; "
        + ("every digest equal on all peers" if report.agreed else "[red]the peers disagree[/]"),
        soft_wrap=True,
    )
    console.print(f"plot of the loss: {plot}", soft_wrap=True)
    console.print("what the model writes now, after 'def ':\n")
    console.print(sample, markup=False, highlight=False, soft_wrap=True)
