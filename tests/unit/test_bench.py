"""The arithmetic behind the benches: floors, the router's queues, medians, and the page that is made of them."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from bench.calibrate import Calibration, pairs
from bench.floors import encoded_bytes, floor_seconds
from bench.goodput import summary
from bench.internet import LinkSpec
from bench.page_machines import cores_section, inner_section, overhead_section
from bench.page_rounds import calibrated, goodput_section, plain_tcp_section, starts_section
from bench.page_swarms import bytes_section, ideal_steps_per_hour, utilisation_section
from bench.router import MBIT, QUEUE_SECONDS, Link, Paths, Wire, wire_bytes
from bench.stock_swarm import summarise
from bench.tables import percentile, table
from bench.utilisation import busy_seconds

FAST = (100.0, 100.0)
CALIBRATION = {
    "forth_mbit": 99.0, "back_mbit": 99.0, "both_forth_mbit": 95.0, "both_back_mbit": 96.0, "round_trip_ms": 50.5,
    "link": "100 Mbit/s, 50 ms",
}  # fmt: skip


# -- floors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [2, 3, 4, 8])
def test_where_all_are_alike_the_floor_is_that_of_the_butterfly(peers: int) -> None:
    expected = 2 * (peers - 1) / peers * 40e6 / (100 * MBIT)
    assert floor_seconds(40e6, 40e6, [FAST] * peers) == pytest.approx(expected, rel=1e-6)


def test_the_slower_direction_decides() -> None:
    assert floor_seconds(40e6, 40e6, [(20.0, 100.0)] * 4) == pytest.approx(24.0, rel=1e-6)


def test_a_slow_peer_that_reduces_nothing_still_sends_and_receives_the_vector() -> None:
    assert floor_seconds(40e6, 40e6, [FAST] * 3 + [(10.0, 10.0)]) == pytest.approx(32.0, rel=1e-6)


def test_parts_in_proportion_beat_equal_parts() -> None:
    rates = [FAST] * 3 + [(50.0, 50.0)]
    equal = (1 + 2 / 4) * 40e6 / (50 * MBIT)
    assert floor_seconds(40e6, 40e6, rates) < equal


def test_a_mean_of_another_size() -> None:
    assert floor_seconds(20e6, 60e6, [FAST] * 4) == pytest.approx(floor_seconds(40e6, 40e6, [FAST] * 4), rel=1e-6)


def test_encoded_bytes() -> None:
    assert encoded_bytes("fp32", 100_000) == (400_000, 400_000)
    assert encoded_bytes("int8", 1_000_000)[0] < 1_020_000


# -- the router ----------------------------------------------------------------------------------------------


def packet(source: int, destination: int, payload: int, segment: int = 0) -> bytes:
    """As the kernel hands it over: a virtio header, IPv4, TCP."""
    offload = struct.pack("=BBHHHH", 1, 1 if segment else 0, 9000, segment, 20, 16)
    ip = bytes([0x45, *[0] * 11, 10, 77, 0, source + 1, 10, 77, 0, destination + 1])
    return offload + ip + bytes([*[0] * 12, 0x50, *[0] * 7]) + bytes(payload)


def paths(*links: Link) -> tuple[Paths, list[tuple[float, int]]]:
    """Paths whose deliveries are noted with the time in ``clock[0]``."""
    delivered: list[tuple[float, int]] = []

    def deliver(host: int, data: bytes) -> bool:
        delivered.append((host, len(data)))
        return True

    return Paths(links, deliver, random.Random(0)), delivered


def arrivals(made: Paths, delivered: list[tuple[float, int]], step: float, until: float) -> list[float]:
    """When each delivery came, to ``step`` seconds."""
    times: list[float] = []
    for index in range(int(until / step) + 1):
        made.advance(index * step)
        times += [index * step] * (len(delivered) - len(times))
    return times


def test_a_wire_is_as_fast_as_its_rate_however_late_it_is_asked() -> None:
    wire = Wire(1000.0)
    assert wire.enter(0.0, 100) == (0.0, 0.1)
    assert wire.enter(0.05, 100) == (0.1, 0.2)
    assert wire.enter(5.0, 100) == (5.0, 5.1)


def test_a_full_queue_drops() -> None:
    wire = Wire(1000.0)
    wire.enter(0.0, int(1000 * QUEUE_SECONDS) + 1)
    assert wire.enter(0.0, 1) is None
    assert wire.free_at == pytest.approx(QUEUE_SECONDS + 0.001)


def test_a_packet_takes_its_length_over_the_rate_and_both_delays() -> None:
    made, delivered = paths(Link.of(1, 100, 10, 0), Link.of(100, 100, 15, 0))
    made.send(0, packet(0, 1, 1210), now=0.0)  # 1250 bytes on a line of 1 Mbit/s: 10 ms
    (time,) = arrivals(made, delivered, 0.001, 0.1)
    assert time == pytest.approx(0.035, abs=0.0011)
    assert made.links[0].sent_bytes == made.links[1].received_bytes == 1250


def test_two_senders_share_the_receivers_line() -> None:
    made, delivered = paths(Link.of(100, 100, 0, 0), Link.of(100, 100, 0, 0), Link.of(100, 1, 0, 0))
    for _ in range(5):
        made.send(0, packet(0, 2, 1210), now=0.0)
        made.send(1, packet(1, 2, 1210), now=0.0)
    times = arrivals(made, delivered, 0.001, 0.2)
    assert len(times) == 10
    assert times[-1] == pytest.approx(0.09, abs=0.002)  # the tenth follows nine of 10 ms


def test_a_cut_host_hears_nothing_until_it_is_mended() -> None:
    made, delivered = paths(Link.of(100, 100, 0, 0), Link.of(100, 100, 0, 0))
    made.links[1].change("cut", 1.0)
    made.send(0, packet(0, 1, 100), now=0.0)
    made.advance(1.0)
    assert not delivered
    assert made.links[0].dropped == 1
    made.links[1].change("cut", 0.0)
    made.send(0, packet(0, 1, 100), now=1.0)
    made.advance(2.0)
    assert len(delivered) == 1


def test_what_is_for_nobody_here_goes_nowhere() -> None:
    made, delivered = paths(Link.of(100, 100, 0, 0))
    for data in (packet(0, 7, 100), b"", bytes(40)):
        made.send(0, data, now=0.0)
    made.advance(1.0)
    assert not delivered


def test_loss() -> None:
    made, delivered = paths(Link.of(1000, 1000, 0, 0.1), Link.of(1000, 1000, 0, 0.1))
    for index in range(1000):
        made.send(0, packet(0, 1, 10), now=float(index))
    made.advance(2000.0)
    assert 750 < len(delivered) < 850


def test_a_packet_of_many_segments_pays_for_the_header_of_each() -> None:
    whole = packet(0, 1, 10_000, segment=1000)
    assert wire_bytes(whole) == 10 * (1000 + 40)
    assert wire_bytes(packet(0, 1, 1000)) == 1040


def test_a_link_knows_no_other_change() -> None:
    with pytest.raises(KeyError):
        Link.of(1, 1, 1, 0).change("colour", 1.0)


# -- calibration ---------------------------------------------------------------------------------------------


def test_a_link_that_is_off_is_named() -> None:
    link = LinkSpec()
    assert not Calibration(99.0, 98.0, 93.0, 91.0, 51.0).faults(link, link)
    faults = Calibration(99.0, 80.0, 93.0, 70.0, 60.0).faults(link, link)
    assert [fault.split()[0] for fault in faults] == ["back_mbit", "both_back_mbit", "round_trip_ms"]


def test_the_slower_of_two_links_is_expected() -> None:
    up, slow = LinkSpec(up_mbit=20.0), LinkSpec(mbit=10.0, up_mbit=10.0)
    assert not Calibration(10.0, 10.0, 10.0, 10.0, 50.0).faults(up, slow)
    assert not Calibration(20.0, 20.0, 20.0, 20.0, 50.0).faults(up, up)


def test_one_host_of_every_kind_of_link_is_measured_with_the_widest_other() -> None:
    fast, slow, up = LinkSpec(), LinkSpec(mbit=10.0, up_mbit=10.0), LinkSpec(up_mbit=20.0)
    assert pairs([fast] * 4) == [(0, 1)]
    assert pairs([fast, fast, fast, slow]) == [(0, 1), (3, 0)]
    assert pairs([fast, slow, up, fast]) == [(0, 3), (1, 0), (2, 0)]


def test_the_page_tells_every_kind_of_link_and_which_was_not_measured() -> None:
    slow = {**CALIBRATION, "forth_mbit": 10.0, "link": "10 Mbit/s, 50 ms"}
    links = ["100 Mbit/s, 50 ms", "100 Mbit/s, 50 ms", "10 Mbit/s, 50 ms"]
    told = calibrated({"links": links, "calibration": {**CALIBRATION, "others": [slow]}})
    assert told.startswith("100 Mbit/s, 50 ms: calibrated 99 and 99 Mbit/s")
    assert "; 10 Mbit/s, 50 ms: calibrated 10 and 99 Mbit/s" in told
    before = calibrated({"links": links, "calibration": CALIBRATION})
    assert before.endswith("; 10 Mbit/s, 50 ms: not calibrated")
    assert before.count("10 Mbit/s, 50 ms") == 1
    assert "not calibrated" not in calibrated({"calibration": CALIBRATION})


# -- numbers -------------------------------------------------------------------------------------------------


def test_busy_seconds_counts_what_lies_inside() -> None:
    assert busy_seconds([(0.0, 1.0), (1.5, 2.5), (3.0, 9.0)], 0.5, 4.0) == pytest.approx(0.5 + 1.0 + 1.0)


def test_percentile() -> None:
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([2.0, 1.0], 0.5) == 1.0


def test_an_uneven_swarm_does_the_sum_of_its_peers() -> None:
    assert ideal_steps_per_hour(400, 8, [1.0, 1.0, 1.0, 4.0]) == pytest.approx(3600 * 26 / 400)


def answer(digest: str = "d", **marks: float) -> dict[str, Any]:
    """What a round peer tells of a round."""
    times = {"ready": 1.0, "grouped": 1.5, "first_sent": 1.6, "gathered": 4.0, "committed": 4.5, **marks}
    return {
        "marks": times, "digest": digest, "committed": True, "aborts": [], "cpu_seconds": 1.0,
        "p2pd_cpu_seconds": 0.5, "codec_seconds": 0.1, "peak_bytes": 100, "bytes": {"round_sent": 10},
    }  # fmt: skip


def test_a_round_lasts_from_the_first_group_to_the_last_mean() -> None:
    found = summary([answer(), answer(ready=1.2, grouped=1.7, gathered=5.0, committed=5.1)])
    assert found["seconds"] == pytest.approx(3.5)
    assert found["first_byte_seconds"] == pytest.approx(0.4)
    assert found["commit_seconds"] == pytest.approx(0.1)
    assert found["same_digest"]
    assert not summary([answer(), answer("e")])["same_digest"]


def test_stock_peers_with_different_sums_differ() -> None:
    rows = [[{"epoch": 1, "seconds": 9.0, "work_seconds": 1.0, "sum": 0.0},
             {"epoch": 2, "seconds": 10.0, "work_seconds": 8.0, "sum": 1.0}]]  # fmt: skip
    assert summarise(rows * 4, 2)["utilisation"] == pytest.approx(0.8)
    assert summarise(rows * 4, 2)["same_digest"]
    other = [[*rows[0][:1], {**rows[0][1], "sum": 2.0}]]
    assert not summarise(rows * 3 + other, 2)["same_digest"]
    assert not summarise(rows * 3 + [[]], 2)["same_digest"]


@pytest.mark.parametrize("apart, same", [(0.29, True), (0.31, False)])
def test_stock_sums_are_the_same_to_a_thousandth_of_their_fall(apart: float, same: bool) -> None:
    row = {"seconds": 10.0, "work_seconds": 8.0}
    peers = [[{"epoch": 1, **row, "sum": 420.0}, {"epoch": 2, **row, "sum": 120.0 + off}] for off in (0.0, 0.0, apart)]
    assert summarise(peers, 2)["same_digest"] == same


# -- the page ------------------------------------------------------------------------------------------------


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def columns(section: str) -> set[tuple[int, ...]]:
    """How many cells the lines of each table of a section have."""
    found: list[set[int]] = []
    inside = False
    for line in section.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append(set())
            found[-1].add(line.count("|"))
        inside = line.startswith("|")
    return {tuple(sorted(one)) for one in found}


def test_goodput_section() -> None:
    measured = {**summary([answer(), answer()]), "wire_bytes": [10, 10]}
    row = {
        "program": "waggle", "codec": "fp32", "megabytes": 40, "peers": 4, "floor_seconds": 2.0, "hung": "",
        "measured": [measured] * 3,
    }  # fmt: skip
    stock = {**measured, "same_digest": False}
    for name in ("cpu_seconds", "p2pd_cpu_seconds", "peak_bytes", "commit_seconds"):
        del stock[name]
    rows = [row, {**row, "program": "hivemind", "measured": [stock] * 2}, {**row, "hung": "nobody", "measured": []}]
    section = goodput_section({"even": {"machine": "m", "calibration": CALIBRATION, "rows": rows}})
    assert "| Waggle | fp32 | 40 | 4 | 2.00 | 2.50 | 2.50 - 2.50 | 80 |" in section
    assert "equal in 0 of 2" in section
    assert "--part even" in section
    assert section.count("| fp32 |") == 4, "three rows, and the phases of the one that is ours and measured"
    assert columns(section) == {(14,), (9,)}
    assert "given up" not in section


def test_attempts_that_were_given_up_are_told_under_the_table() -> None:
    lost = {**answer(), "aborts": ["member-gone"]}
    measured = [{**summary(answers), "wire_bytes": [1]} for answers in ([answer(), answer()], [lost, lost])]
    row = {
        "program": "waggle", "codec": "sparse", "megabytes": 160, "peers": 2, "floor_seconds": 2.0, "hung": "",
        "cold_hangs": 0, "warm_up": summary([{**lost, "aborts": ["leader-gone"]}, answer()]), "measured": measured,
    }  # fmt: skip
    section = goodput_section({"even": {"machine": "m", "calibration": CALIBRATION, "rows": [row]}})
    assert (
        "- Waggle sparse, 160 MB, 2 peers: 3 attempts of peers were given up (2 member-gone, 1 leader-gone) and made "
        "again, in 2 of 3 rounds, the one that warms up included;"
    ) in section
    never = {**row, "measured": [{**measured[1], "committed": False}]}
    section = goodput_section({"even": {"machine": "m", "calibration": CALIBRATION, "rows": [never]}})
    assert "and not all of them made good" in section


def test_starts_section() -> None:
    rounds = [summary([answer()])] * 3
    good = {"hung": False, "seconds": 5.0, "start_seconds": 2.0, "aborts": [], "same_digest": True}
    bad = {"hung": True, "seconds": 30.0, "aborts": ["late"]}
    data = {
        "machine": "m", "calibration": CALIBRATION, "hung_seconds": 30.0, "warm": {"rounds": rounds},
        "cold": [good], "stock": [good, bad],
    }  # fmt: skip
    section = starts_section({"all": data})
    assert "| hivemind | 2 | 1 | 3.00 | 3.00 | 2.00 | 0 |" in section
    assert all(len(one) == 1 for one in columns(section))


def test_utilisation_section() -> None:
    peer = {"ready_to_commit_seconds": 1.0, "cpu_seconds": 2.0, "p2pd_seconds": 1.0}
    row = {
        "program": "waggle", "codec": "int8", "overlap": 0, "inner_steps": 30, "outer_steps": 3, "step_seconds": 1.0,
        "slow": 1.0, "rules": {}, "utilisation": 0.951, "same_digest": True, "failed": "", "peers": [peer] * 4,
        "seconds": 100.0, "examples": [1, 2, 3, 4],
    }  # fmt: skip
    stock = {**row, "program": "hivemind"}
    del stock["peers"]
    uneven = {**row, "rules": {"target_batch": 400}, "slow": 4.0}
    base = {"machine": "m", "calibration": CALIBRATION}
    section = utilisation_section(
        {
            "even": {**base, "rows": [row, stock, {**row, "failed": "late"}]},
            "uneven": {**base, "rows": [uneven, {**uneven, "failed": "late"}]},
        }
    )
    assert "| Waggle | int8 | no | 30 | 0.951 | 1.00 | 1.00 | equal |" in section
    assert "| 4 s, the others' 1 s | 400 | 108 | 234 | 46 | 1, 2, 3, 4 | equal |" in section
    assert section.count("Steps of 1 s.") == 1
    assert "up to 4 s of the slow peer's" in section
    assert all(len(one) == 1 for one in columns(section))


def test_plain_tcp_is_told_beside_the_floor() -> None:
    link = {"link": "a link", **dict.fromkeys(("forth_mbit", "back_mbit", "both_forth_mbit", "both_back_mbit"), 99.0)}
    section = plain_tcp_section({"even": {
        "calibration": {**link, "round_trip_ms": 50.0}, "machine": "a machine", "peers": 4, "megabytes": 40,
        "floor_seconds": 4.8, "seconds": [6.0, 5.0, 8.0],
    }})  # fmt: skip
    assert "6.00 s, the median of 3 (5.00 to 8.00), 80 % of the" in section


def test_inner_optimizers_are_compared_by_whole_steps_of_one_model() -> None:
    rows = [
        {
            "model": model, "parameters": 434_944, "tokens": 1024, "optimizer": optimizer,
            "gradient_seconds": seconds, "step_seconds": step,
        }
        for model, seconds in (("demo", 0.09), ("text", 0.9))
        for optimizer, step in (("adamw", 0.01), ("muon", 0.03))
    ]  # fmt: skip
    data = {"machine": "a machine", "device_name": "", "rows": rows}
    section = inner_section({"cpu": data, "cuda": {**data, "device_name": "a GPU"}})
    assert "| demo | 0.43 M | 1024 | adamw | 90.0 | 10.0 | 1.00x |" in section
    assert "| demo | 0.43 M | 1024 | muon | 90.0 | 30.0 | 1.20x |" in section
    assert "| text | 0.43 M | 1024 | muon | 900.0 | 30.0 | 1.02x |" in section
    assert "On one a GPU (a machine)" in section
    assert "| text | 0.43 M | 1024 | muon | 900.0 | 30.0 |\n" in section
    assert all(len(one) == 1 for one in columns(section))


def test_bytes_and_overhead_sections() -> None:
    rows = [
        {"codec": codec, "round_bytes": size, "stream_bytes": size, "wire_bytes": size, "same_digest": True}
        for codec, size in (("fp32", 60e6), ("int8", 15e6))
    ]
    data = {"machine": "m", "peers": 4, "parameters": 10_000_000, "rows": rows}
    assert "| int8 | 15.000 MB | 15.000 MB | 15.000 MB | 4.0x | 976.6 | equal |" in bytes_section({"all": data})
    turn = {"examples": 99, "seconds": 10.0, "step_seconds": 9.9}
    measured = {
        "machine": "m", "device": "cpu", "device_name": "", "inner_steps": 30, "codec": "int8", "batch_size": 16,
        "peer": [turn], "bare": [{"examples": 100, "seconds": 10.0}], "peer_rate": 9.9, "bare_rate": 10.0,
        "ratio": 0.99,
    }  # fmt: skip
    on_gpu = {**measured, "device": "cuda", "device_name": "a GPU", "inner_steps": 300}
    section = overhead_section({"cpu": measured, "cuda": on_gpu})
    assert section.count("| 1 | 9.90 | 10.00 | 0.990 | 99.0 |") == 2
    assert "python -m bench.overhead`" in section
    assert "python -m bench.overhead --device cuda --inner-steps 300`" in section


def test_more_cores_stand_beside_the_same_rows_of_other_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {"program": "waggle", "codec": "int8", "megabytes": 40, "peers": 4, "floor_seconds": 1.2}
    daemons = {"program": "waggle", "codec": "int8", "overlap": 0, "inner_steps": 30}
    at = {"machine": "a large machine", "calibration": CALIBRATION}
    unknown = {**rounds, "codec": "int4"}
    found = {"16": {
        **at, "goodput": [{**rounds, "measured": [{"seconds": 1.5}]}, {**unknown, "measured": []}],
        "utilisation": [{**daemons, "utilisation": 0.943}, {**daemons, "failed": "late"}],
    }}  # fmt: skip
    above = {
        "goodput": {"even": {"machine": "a small one", "rows": [{**rounds, "measured": [{"seconds": 1.6}]}]}},
        "utilisation": {"even": {"rows": [{**daemons, "utilisation": 0.94}]}},
    }
    monkeypatch.setattr("bench.page_machines.load", above.get)
    section = cores_section(found)
    assert "| int8, 40 MB, 4 peers: seconds | 1.20 | 1.60 | 1.50 | 80 |" in section
    assert "| int4, 40 MB, 4 peers: seconds | 1.20 | - | - | - |" in section
    assert "| int8, 30 inner steps: utilisation |  | 0.940 | 0.943 |  |" in section
    assert "| int8, 30 inner steps: utilisation |  | 0.940 | - |  |" in section
    assert "a large machine" in section
    assert "Above: a small one." in section
    assert all(len(one) == 1 for one in columns(section))
