"""What does the daemon cost over the bare training loop?

    sudo .venv/bin/python -m bench.overhead          (some 10 minutes)

One `waggle peer` that trains alone (min_group_size = 1), commits included, and in turn with it a plain loop with the
same model, data, optimizer and one thread (bench/bare_loop.py), several times. Examples per second of the peer are
counted from its first commit to its last. Writes bench/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.internet import REPOSITORY, Internet, InternetError, LinkSpec
from bench.paced_swarm import PacedSwarm, SwarmError, manifest
from bench.tables import Row, keep, one_line, say
from peer.rounds.codec import CODECS

INNER_STEPS = 30
OUTER_STEPS = 2
BATCH = 16
SECONDS = 300.0


def text(codec: str) -> str:
    """The manifest of both: 10 M parameters, steps of some second on one core, as in the table of utilisation."""
    made = manifest(inner_steps=INNER_STEPS, codec=codec, min_group_size=1, max_group_size=1)
    return made.replace("batch_size = 8", f"batch_size = {BATCH}")


def peer_rate(internet: Internet, run: str) -> Row:
    """Examples per second of one peer."""
    with PacedSwarm(internet, run, [0.0]) as swarm:
        swarm.commits_until(1 + OUTER_STEPS, SECONDS)
        meter = swarm.peers[0].meter
        commits = {line["commit"]: line["marks"]["committed"] for line in meter if "commit" in line}
        begin, end = commits[1], commits[1 + OUTER_STEPS]
        steps = [line["step"] for line in meter if "step" in line and begin <= line["step"][1] <= end]
        return {
            "examples": len(steps) * BATCH, "seconds": end - begin,
            "step_seconds": sum(last - first for first, last in steps),
        }  # fmt: skip


def bare_rate(run: str) -> Row:
    """Examples per second of the plain loop."""
    with tempfile.TemporaryDirectory(prefix="waggle-bare-") as folder:
        path = Path(folder) / "run.toml"
        path.write_text(run, encoding="utf-8")
        command = [sys.executable, "-m", "bench.bare_loop", str(path), str(INNER_STEPS * OUTER_STEPS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        told = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True, timeout=SECONDS
        ).stdout
    return dict(json.loads(told))


def main() -> int:
    """In turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codec", choices=list(CODECS), default="int8")
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    run = text(arguments.codec)
    peers, bares = [], []
    with (
        one_line("bench.overhead", InternetError, SwarmError, subprocess.SubprocessError),
        Internet([LinkSpec()]) as internet,
    ):
        for _ in range(arguments.repeats):
            bares.append(bare_rate(run))
            peers.append(peer_rate(internet, run))
            say("bare", bares[-1], "peer", peers[-1])
    rates = [median(row["examples"] / row["seconds"] for row in rows) for rows in (peers, bares)]
    found = {
        "codec": arguments.codec, "inner_steps": INNER_STEPS, "batch_size": BATCH, "peer": peers, "bare": bares,
        "peer_rate": rates[0], "bare_rate": rates[1], "ratio": rates[0] / rates[1],
    }  # fmt: skip
    say({name: found[name] for name in ("peer_rate", "bare_rate", "ratio")})
    if not arguments.no_write:
        keep("overhead", "all", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
