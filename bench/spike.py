"""Does the loss jump when a peer joins?

    .venv/bin/python -m bench.spike --write

Three real peers (processes, libp2p on loopback) train in ``updates`` mode and a fourth joins in the middle; then the
same three train without it. Both runs are the same bit for bit until the newcomer's first link. All measure the
validation loss after every outer step. Writes bench/results/spike.json, docs/joins.png and docs/joins.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.join_page import draw_spike, write_page
from bench.tables import Row, machine
from tests.processes import House, Peer

MANIFEST = Path(__file__).resolve().parent / "spike.toml"
PEERS = 3
RELEASED_AFTER = 14
"""The outer step after which the newcomer begins; its first link is a few steps later."""
WINDOW = 10
"""Outer steps before and after the join, with which it is compared: at first the loss falls far faster."""
SECONDS = 600.0


def run(seed: int, outer_steps: int, joins: bool) -> tuple[dict[int, float], dict[int, Row], str]:
    """One swarm to the end.

    Returns:
        Validation loss by outer step, the commits' journal lines by outer step, and the newcomer's peer id.
    """
    text = MANIFEST.read_text(encoding="utf-8").replace("seed = 0", f"seed = {seed}")
    with tempfile.TemporaryDirectory() as name, House(Path(name)) as house:
        maddrs = house.bootstrap("bootstrap").maddrs
        peers = [
            house.hold(
                f"peer-{index}", text, "--max-outer-steps", str(outer_steps),
                "--data-shard", f"{index}/{PEERS + 1}", initial_peers=maddrs,
            )
            for index in range(PEERS + joins)
        ]  # fmt: skip
        for peer in peers:
            peer.prepare()
        for peer in peers[:PEERS]:
            peer.release()
        if joins:
            peers[0].commits_until(RELEASED_AFTER, SECONDS)
            peers[PEERS].release()
        for peer in peers:
            if code := peer.wait(SECONDS):
                raise RuntimeError(f"{peer.name} ended with exit code {code}\n{peer.words}")
        newcomer = str(peers[PEERS].hear("peer started")["peer_id"]) if joins else ""
        return _losses(peers), _commits(peers), newcomer


def _losses(peers: Sequence[Peer]) -> dict[int, float]:
    found: dict[int, set[float]] = {}
    for peer in peers:
        for line in peer.events("validation"):
            found.setdefault(line["outer_step"], set()).add(line["loss"])
    differing = [step for step, losses in found.items() if len(losses) > 1]
    if differing:
        raise RuntimeError(f"the peers measured different losses at outer steps {differing}")
    return {step: losses.pop() for step, losses in sorted(found.items())}


def _commits(peers: Sequence[Peer]) -> dict[int, Row]:
    return {line["outer_step"]: line for peer in peers for line in peer.events("commit")}


def compare(seed: int, outer_steps: int) -> Row:
    """A run with a join beside the same run without."""
    joined, commits, newcomer = run(seed, outer_steps, joins=True)
    alone, others, _ = run(seed, outer_steps, joins=False)
    at = min(step for step, line in commits.items() if newcomer in line["participants"])
    around = range(max(1, at - WINDOW), min(outer_steps, at + WINDOW) + 1)
    return {
        "seed": seed,
        "joined_at": at,
        "same_before": all(commits[step]["digest"] == others[step]["digest"] for step in range(1, at)),
        "steps_joined": {step: joined[step] - joined[step - 1] for step in around},
        "steps_alone": {step: alone[step] - alone[step - 1] for step in around},
        "examples": [_examples(commits[step], newcomer) for step in (at, at + 1)],
        "with_join": joined,
        "without_join": alone,
    }


def _examples(commit: Row, newcomer: str) -> Row:
    """What the newcomer and the others had in a link, in examples."""
    examples = dict(commit["participants"])
    return {"newcomer": examples.pop(newcomer), "others": sorted(examples.values())}


def main() -> None:
    """Runs all pairs and prints; with --write, the page too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--outer-steps", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="replace docs/joins.* and bench/results/spike.json")
    arguments = parser.parse_args()
    rows = [compare(seed, arguments.outer_steps) for seed in range(arguments.seeds)]
    data = {"machine": machine(), "outer_steps": arguments.outer_steps, "window": WINDOW, "runs": rows}
    write_page("spike", data, write=arguments.write)
    if arguments.write:
        draw_spike(rows)


if __name__ == "__main__":
    main()
