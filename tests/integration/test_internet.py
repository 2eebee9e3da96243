"""The emulated internet of bench/: its links are what they are said to be, and nothing of it is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from bench.calibrate import calibrate
from bench.internet import Host, Internet, InternetError, LinkSpec, obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=f"no emulated internet here: {obstacle()}")
LINK = LinkSpec(mbit=40.0, up_mbit=20.0, ms=12.5)


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet([LINK, LINK]) as made:
        yield made


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_two_hosts_are_as_far_apart_and_as_fast_as_they_are_said_to_be(internet: Internet) -> None:
    found = calibrate(internet)
    assert not found.faults(LINK, LINK, tolerance=0.15), str(found)
    assert min(counts["sent_bytes"] for counts in internet.counts()) > 1_000_000


def test_the_end_takes_everything_with_it() -> None:
    with Internet([LINK]) as internet:
        (host,) = internet.hosts
        assert isinstance(host, Host)
        assert host.name in namespaces()
        sleeper = internet.start(0, ["sleep", "600"])
    assert sleeper.wait(10) != 0
    assert host.name not in namespaces()


def test_an_unknown_change_is_refused(internet: Internet) -> None:
    with pytest.raises(InternetError, match="colour"):
        internet.change(0, colour=1.0)
    internet.change(1, cut=True)
