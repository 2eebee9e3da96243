"""How much of what the tables lack is for want of cores?

    sudo .venv/bin/python -m bench.cores          (some 5 minutes, on a machine with 16 cores or more)

All hosts of the emulated internet share one machine. On two cores that decides some rows of the other tables; this
measures those rows again where every peer has cores of its own, one for its values and one for the rest. Writes
bench/results/cores.json, one part for each number of cores.
"""

from __future__ import annotations

import argparse
import os
import sys

from bench import goodput, utilisation
from bench.calibrate import CalibrationError, checked
from bench.internet import Internet, InternetError
from bench.tables import keep, one_line, say

CORES_PER_PEER = 2
ROUNDS = (
    goodput.Case("waggle", "fp32", 40, 4, 3),
    goodput.Case("waggle", "int8", 40, 4, 3),
    goodput.Case("waggle", "int4", 40, 4, 3),
    goodput.Case("waggle", "sparse", 40, 4, 3),
    goodput.Case("waggle", "sparse", 160, 8, 3),
)
DAEMONS = (utilisation.Case(codec="int8", outer_steps=2),)


def main() -> int:
    """Measures all; what is done is kept at once."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cores = os.cpu_count() or 1
    needed = CORES_PER_PEER * max(case.peers for case in ROUNDS)
    if cores < needed:
        print(f"bench.cores: it needs {needed} cores, and there are {cores}: see the other tables", file=sys.stderr)
        return 1
    with one_line("bench.cores", InternetError, CalibrationError), Internet([goodput.EVEN] * 8) as internet:
        found = {"cores": cores, "calibration": checked(internet), "goodput": [], "utilisation": []}
        for case in ROUNDS:
            found["goodput"].append(goodput.measure(internet, case))
            say(case, [round(one["seconds"], 2) for one in found["goodput"][-1]["measured"]])
            keep("cores", str(cores), found)
        for daemons in DAEMONS:
            found["utilisation"].append(utilisation.measure(internet, daemons))
            keep("cores", str(cores), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
