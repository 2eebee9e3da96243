"""docs/performance.md from what is kept in bench/results/: for each table its numbers, its command and a chart.

    .venv/bin/python -m bench.page

The programs that measure write the numbers; this one draws them, and can be run again at any time.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.page_machines import cores_section, inner_section, overhead_section
from bench.page_rounds import draw_goodput, goodput_section, plain_tcp_section, starts_section
from bench.page_swarms import bytes_section, draw_utilisation, utilisation_section
from bench.tables import DOCS, Row, load

PAGE = DOCS / "performance.md"
INTRODUCTION = """# Performance

Measured on an emulated internet: every peer is a process in a network namespace of its own, behind a link with a rate
each way, a delay and a queue of 200 ms that drops what it cannot hold (`bench/internet.py`). Before each run plain
TCP measures every kind of link, and a run on a link that is off is not kept. A table may have rows of several runs; the
calibration and the machine above it are those of the last one. All hosts share the machine's cores, the router between
them too. Stock hivemind 1.1.12 runs in hosts with the same links. `make bench` measures all of it again but the
frontier and what was measured on other machines, as root on Linux; every section names its own command.

Medians unless said otherwise. Digests: whether all peers held the same one after every commit."""

SHORTFALLS = """## What did not reach its number

- **Utilisation, blocking, 30 steps of 1 s: 0.95 was wanted; int4 has 0.96, int8 0.94, and [sixteen
  cores](#with-more-cores) do not change that.** 1.58 s is all that 0.95 allows for an outer step's round. The bytes of
  int8 alone take 1.21 s. Where three flows meet in front of each host they are never quite alike: sampled every 50 ms,
  links in use carry 85 to 90 % of their rate, though no packet is lost, and plain TCP between these hosts needs some
  1.4 s for the same bytes. Four round trips (ready, the first chunk, the verdict, the vote) take 0.2. With
  `overlap = 1` none of it is lost: 0.99, but the mean comes one round late, which costs learning in short runs (the
  frontier's table).
- **40 MB of int8, int4 and sparse among four peers are far from their floors.** With sixteen cores int8 and int4 are
  near what [plain TCP](#plain-tcp-for-comparison) reaches with fp32 (81 %), and round trips are the rest; on two, four
  peers encode, decode, apply and hash 40 MB each at the same moment. Sparse is far from its floor anywhere: it is the
  choice of the largest values that takes the time, by one thread for each peer in these tables. Of 4 MB the round trips
  are a good part.
- **The daemon's overhead on a GPU: 0.98 was wanted, 0.95 is there.** That is not its own work, which is within
  the noise of inner steps of 45 ms, but the commits: each takes 0.6 s of one CPU thread (encode, average, decode, apply
  and hash 10 M parameters), and outer steps were of 14 s only.
- **Memory: two vectors more at most were wanted.** With 160 MB the peak is 0.3 to 1.8 of them, with sparse, which keeps
  a remainder, 2.1 between two peers; with 40 MB of fp32 or sparse 1.7 to 2.7. What is held is less ([the
  sum](protocol.md#memory), which `tests/integration/test_memory.py` holds us to): malloc keeps what it may need again,
  as chunks and parts come and go in many threads. `MALLOC_MMAP_THRESHOLD_=1048576` with
  `MALLOC_TRIM_THRESHOLD_=16777216` in a peer's environment took 40 MB of sparse from 2.8 to 1.9, of fp32 from 2.3 to
  2.05 and of int8 from 1.2 to 0.8, at the same CPU seconds for a round. It is not the default, as it may slow training
  on a CPU, which was not measured.
- **At 900 inner steps one peer alone is better than anybody below 0.9 bytes per token**, published or ours, and than
  DiLoCo 30 with 46; at 2700 it is better than four of ours that were tried once, and than no recipe.
- **Outer rates and momenta of the frontier were not varied**, and what was tried once has its own table.
- Beyond the grid: `SparseLoCo 15` and the sparser arms of ours were best at its highest rate."""

SECTIONS: dict[str, Callable[[Row], str]] = {
    "goodput": goodput_section,
    "plain_tcp": plain_tcp_section,
    "starts": starts_section,
    "utilisation": utilisation_section,
    "cores": cores_section,
    "bytes": bytes_section,
    "overhead": overhead_section,
    "inner": inner_section,
}
CHARTS: dict[str, Callable[[Row, str], None]] = {
    "goodput": draw_goodput,
    "utilisation": draw_utilisation,
}


def render() -> None:
    """Makes the page of the numbers that are kept."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        found = load(name)
        if found is None:
            continue
        parts.append(section(found))
        if name in CHARTS:
            picture = f"performance-{name}.png"
            CHARTS[name](found, str(DOCS / picture))
            parts.append(f"![{name}]({picture})")
    parts += frontier()
    parts.append(SHORTFALLS)
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def frontier() -> list[str]:
    """Loss over bytes per token, once bench/frontier.py has measured it."""
    found = load("frontier")
    if found is None:
        return []
    from bench.frontier_page import draw_frontier, frontier_section

    picture = "performance-frontier.png"
    draw_frontier(found, DOCS / picture)
    return [frontier_section(found), f"![validation loss over bytes per token]({picture})"]


if __name__ == "__main__":
    render()
