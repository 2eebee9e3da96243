"""What does the daemon cost over the bare training loop?

    sudo .venv/bin/python -m bench.overhead          (some 10 minutes)
    sudo .venv/bin/python -m bench.overhead --device cuda --inner-steps 300 --batch-size 256

One `waggle peer` that trains alone (min_group_size = 1), commits included, and in turn with it a plain loop with the
same model, data, optimizer and one thread (bench/bare_loop.py), several times. Examples per second of the peer are
counted from its first commit to its last. Writes bench/results/overhead.json, one part for each kind of device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from bench.internet import REPOSITORY, Internet, InternetError, LinkSpec
from bench.paced_swarm import PacedSwarm, SwarmError, manifest
from bench.tables import Row, device_name, keep, one_line, say
from peer.rounds.codec import CODECS

OUTER_STEPS = 2
SECONDS = 300.0


@dataclass(frozen=True)
class Work:
    """What both do. The defaults are steps of some second on one core, as in the table of utilisation."""

    codec: str = "int8"
    device: str = "cpu"
    inner_steps: int = 30
    batch_size: int = 16

    @property
    def text(self) -> str:
        """The manifest: 10 M parameters."""
        made = manifest(inner_steps=self.inner_steps, codec=self.codec, min_group_size=1, max_group_size=1)
        return made.replace("batch_size = 8", f"batch_size = {self.batch_size}")


def peer_rate(internet: Internet, work: Work) -> Row:
    """Examples per second of one peer."""
    with PacedSwarm(internet, work.text, [0.0], device=work.device) as swarm:
        swarm.commits_until(1 + OUTER_STEPS, SECONDS)
        meter = swarm.peers[0].meter
        commits = {line["commit"]: line["marks"]["committed"] for line in meter if "commit" in line}
        begin, end = commits[1], commits[1 + OUTER_STEPS]
        steps = [line["step"] for line in meter if "step" in line and begin <= line["step"][1] <= end]
        return {
            "examples": len(steps) * work.batch_size, "seconds": end - begin,
            "step_seconds": sum(last - first for first, last in steps),
        }  # fmt: skip


def bare_rate(work: Work) -> Row:
    """Examples per second of the plain loop."""
    with tempfile.TemporaryDirectory(prefix="waggle-bare-") as folder:
        path = Path(folder) / "run.toml"
        path.write_text(work.text, encoding="utf-8")
        steps = str(work.inner_steps * OUTER_STEPS)
        command = [sys.executable, "-m", "bench.bare_loop", str(path), steps, work.device]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        told = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True, timeout=SECONDS
        ).stdout
    return dict(json.loads(told))


def main() -> int:
    """In turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codec", choices=list(CODECS), default=Work.codec)
    parser.add_argument("--device", default=Work.device, help="cpu or cuda")
    parser.add_argument("--inner-steps", type=int, default=Work.inner_steps)
    parser.add_argument("--batch-size", type=int, default=Work.batch_size)
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    work = Work(arguments.codec, arguments.device, arguments.inner_steps, arguments.batch_size)
    peers, bares = [], []
    with (
        one_line("bench.overhead", InternetError, SwarmError, subprocess.SubprocessError),
        Internet([LinkSpec()]) as internet,
    ):
        for _ in range(arguments.repeats):
            bares.append(bare_rate(work))
            peers.append(peer_rate(internet, work))
            say("bare", bares[-1], "peer", peers[-1])
    rates = [median(row["examples"] / row["seconds"] for row in rows) for rows in (peers, bares)]
    found = {
        **asdict(work), "peer": peers, "bare": bares,
        "peer_rate": rates[0], "bare_rate": rates[1], "ratio": rates[0] / rates[1],
    }  # fmt: skip
    say({name: found[name] for name in ("peer_rate", "bare_rate", "ratio")})
    if not arguments.no_write:
        device = torch.device(work.device)
        keep("overhead", device.type, {"device_name": device_name(device), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
