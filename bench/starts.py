"""How long from the moment when all peers are ready to the first byte of their contributions, and does a start hang?

    sudo .venv/bin/python -m bench.starts          (some 10 minutes)

Four real peers, 100 Mbit/s and 50 ms apart. Warm: 50 rounds one after the other; what counts in each is the last
peer's first chunk. Cold: every peer gets a new key, a new p2pd and a new DHT that knows the first peer only, 20 times;
stock hivemind's averager does the same beside it. Writes bench/results/starts.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from bench.calibrate import CalibrationError, checked
from bench.goodput import EVEN, summary
from bench.internet import Internet, InternetError
from bench.round_swarm import OURS, STOCK, HangError, RoundSwarm
from bench.tables import Row, keep, one_line, say

PEERS = 4
PARAMETERS = 40_000
"""A part of 40 KB for each peer: one chunk, which leaves at once."""
HUNG_SECONDS = 30.0
"""A cold start that has made no round by then hangs."""
_WORK_SECONDS = 0.3
_JOIN_SECONDS = 30.0


def warm(internet: Internet, rounds: int) -> Row:
    """Rounds one after the other: seconds from all ready to the first byte, to the group, to the commit."""
    with RoundSwarm(internet, PEERS) as swarm:
        swarm.start(PARAMETERS, "fp32", deadline_seconds=HUNG_SECONDS)
        swarm.joined(_JOIN_SECONDS)
        swarm.round(HUNG_SECONDS, _WORK_SECONDS)
        found = [summary(swarm.round(HUNG_SECONDS, _WORK_SECONDS)) for _ in range(rounds)]
    kept = ("first_byte_seconds", "group_seconds", "whole_seconds", "same_digest", "aborts")
    return {"rounds": [{name: one[name] for name in kept} for one in found]}


def cold(internet: Internet, starts: int, program: Sequence[str]) -> list[Row]:
    """Cold starts: seconds from the first peer's start to the end of the first round, and whether it hung."""
    rows: list[Row] = []
    with RoundSwarm(internet, PEERS, program) as swarm:
        for _ in range(starts):
            began = time.monotonic()
            try:
                swarm.start(PARAMETERS, "fp32", deadline_seconds=HUNG_SECONDS)
                started = time.monotonic()
                answers = swarm.round(HUNG_SECONDS)
                found = summary(answers)
                row = {
                    "start_seconds": started - began,
                    "seconds": time.monotonic() - began,
                    "hung": not found["committed"],
                    "aborts": found["aborts"],
                    "same_digest": found["same_digest"],
                }
            except HangError as hang:
                row = {"hung": True, "aborts": [str(hang)[-300:]], "seconds": time.monotonic() - began}
                swarm.revive()
            rows.append(row)
            say("cold start", program[0], {name: row[name] for name in ("seconds", "hung", "aborts")})
    return rows


def main() -> int:
    """Measures all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--stock-starts", type=int, default=8)
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    with one_line("bench.starts", InternetError, CalibrationError, HangError), Internet([EVEN] * PEERS) as internet:
        found = {
            "calibration": checked(internet),
            "warm": warm(internet, arguments.rounds),
            "cold": cold(internet, arguments.starts, OURS),
            "stock": cold(internet, arguments.stock_starts, STOCK),
            "hung_seconds": HUNG_SECONDS,
        }
    if not arguments.no_write:
        keep("starts", "all", found)
    else:
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
