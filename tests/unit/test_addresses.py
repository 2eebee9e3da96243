"""Addresses: what is accepted, and what is said of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from swarm.addresses import (
    AddressError,
    check_announce,
    check_host,
    check_initial_peer,
    is_loopback,
    parse_http,
)
from swarm.errors import ExitCode, UsageError

ED25519 = "12D3KooWGRUKcRBBx3g7wqVYo2ZQ5uYoL4UoyYtsBRK9A1cKpeYo"
RSA = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"

ports = st.integers(1, 65535)
hosts = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}"),
    st.sampled_from(["/dns4/example.org", "/dns6/a.b.example", "/dns/localhost"]),
)
transports = st.one_of(ports.map(lambda n: f"/tcp/{n}"), ports.map(lambda n: f"/udp/{n}/quic-v1"))


@pytest.mark.parametrize("peer_id", [ED25519, RSA])
@pytest.mark.parametrize("host", ["/ip4/203.0.113.7", "/ip6/2001:db8::1", "/dns4/a.example", "/dns6/a.example"])
@pytest.mark.parametrize("transport", ["/tcp/31337", "/udp/31337/quic-v1"])
def test_initial_peers_in_every_form(host: str, transport: str, peer_id: str) -> None:
    text = f"{host}{transport}/p2p/{peer_id}"
    assert check_initial_peer(text) == text


def test_an_initial_peer_behind_a_relay() -> None:
    text = f"/ip4/203.0.113.7/tcp/31337/p2p/{RSA}/p2p-circuit/p2p/{ED25519}"
    assert check_initial_peer(text) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("/ip4/1.2.3/tcp/1", "'1.2.3' is not an IPv4 address"),
        ("/ip4/::1/tcp/1", "'::1' is not an IPv4 address"),
        ("/ip6/1.2.3.4/tcp/1", "'1.2.3.4' is not an IPv6 address"),
        ("203.0.113.7:31337", "a multiaddr starts with a slash"),
        ("", "a multiaddr starts with a slash"),
        ("/http/example.org", "starts with 'http', not with one of ip4, ip6, dns4, dns6, dns"),
        ("/ip4/203.0.113.7", "has no transport: /tcp/PORT or /udp/PORT/quic-v1 follows the host"),
        ("/ip4/203.0.113.7/sctp/1", "'sctp' is not a transport"),
        ("/ip4/203.0.113.7/tcp", "'' is not a port (0 to 65535)"),
        ("/ip4/203.0.113.7/tcp/65536", "'65536' is not a port (0 to 65535)"),
        ("/ip4/203.0.113.7/tcp/+1", "'+1' is not a port (0 to 65535)"),
        ("/ip4/203.0.113.7/tcp/١", "'١' is not a port (0 to 65535)"),  # noqa: RUF001 - a digit, elsewhere
        (f"/ip4/203.0.113.7/udp/1/p2p/{RSA}", "/quic-v1 follows /udp/1"),
        (f"/ip4/203.0.113.7/udp/1/quic/p2p/{RSA}", "udp/31337/quic-v1/p2p"),
        ("/ip4/203.0.113.7/tcp/1", "does not end in /p2p/PEER_ID"),
        ("/ip4/203.0.113.7/tcp/1/", "does not end in /p2p/PEER_ID"),
        (f"/ip4/203.0.113.7/tcp/1/ws/p2p/{RSA}", "'/ws' is not known here"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{ED25519[:-3]}", "is not a peer id (12D3Koo... or Qm..., perhaps cut off?)"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{RSA[:-1]}0", "is not a peer id"),
        ("/ip4/203.0.113.7/tcp/1/p2p/", "'' is not a peer id"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{RSA}/tcp/2", "'/tcp/2' is too much"),
        (f"/ip4/203.0.113.7/tcp/0/p2p/{RSA}", "nobody can dial port 0"),
        (f"/ip4/0.0.0.0/tcp/1/p2p/{RSA}", "nobody can dial 0.0.0.0"),
        (f"/dns4/two words/tcp/1/p2p/{RSA}", "not allowed"),
        (f"/dns4//tcp/1/p2p/{RSA}", "/dns4/ has no name behind it"),
    ],
)
def test_what_is_said_of_a_wrong_initial_peer(text: str, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        check_initial_peer(text)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"'{text}': ")
    assert "; expected e.g. /ip4/203.0.113.7/" in message
    assert "\n" not in message


def test_an_address_error_is_for_people_and_for_pydantic() -> None:
    assert issubclass(AddressError, UsageError)
    assert issubclass(AddressError, ValueError)
    assert AddressError.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/31337"])
def test_addresses_to_listen_on(text: str) -> None:
    assert check_host(text) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("/dns4/example.org/tcp/1", "a name cannot be listened on"),
        (f"/ip4/0.0.0.0/tcp/1/p2p/{RSA}", "has no /p2p/ part"),
        ("/ip4/0.0.0.0/udp/0", "expected e.g. /ip4/0.0.0.0/udp/31337/quic-v1"),
    ],
)
def test_what_is_said_of_a_wrong_address_to_listen_on(text: str, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        check_host(text)
    assert said in str(caught.value)


def test_addresses_to_announce() -> None:
    assert check_announce("/dns4/example.org/tcp/31337/") == "/dns4/example.org/tcp/31337"


@pytest.mark.parametrize(
    "text, said",
    [
        ("/ip4/203.0.113.7/tcp/0", "nobody can dial port 0"),
        ("/ip6/::/tcp/31337", "nobody can dial ::, which means every interface"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{RSA}", "it is added by itself"),
    ],
)
def test_what_is_said_of_a_wrong_address_to_announce(text: str, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        check_announce(text)
    assert said in str(caught.value)


@settings(deadline=None, derandomize=True)
@given(hosts, transports)
def test_what_is_accepted_is_canonical_and_stays_so(host: str, transport: str) -> None:
    try:
        accepted = check_announce(host + transport)
    except AddressError as error:
        assert "every interface" in str(error)
        return
    assert check_announce(accepted) == accepted
    assert Multiaddr(accepted) == Multiaddr(host + transport)


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="/ip46tcpudns2quic-v1. :0123456789Qm", max_size=60))
def test_any_text_is_accepted_or_refused_in_one_line(text: str) -> None:
    for check in (check_initial_peer, check_host, check_announce, parse_http):
        try:
            check(text)
        except AddressError as error:
            assert "expected e.g." in str(error)


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("example.org:80", ("example.org", 80)),
        (" localhost:1 ", ("localhost", 1)),
        ("off", None),
        ("OFF", None),
    ],
)
def test_http_addresses(text: str, parsed: tuple[str, int] | None) -> None:
    assert parse_http(text) == parsed


@pytest.mark.parametrize(
    "text, said",
    [
        ("8080", "is not HOST:PORT"),
        (":8080", "is not HOST:PORT"),
        ("", "or off"),
        ("::1:8080", "needs brackets"),
        ("[1.2.3.4]:80", "'1.2.3.4' is not an IPv6 address"),
        ("localhost:http", "'http' is not a port"),
        ("http://localhost:80", "is not a host"),
    ],
)
def test_what_is_said_of_a_wrong_http_address(text: str, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_http(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("host, loopback", [("127.0.0.2", True), ("::1", True), ("localhost", True)])
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
