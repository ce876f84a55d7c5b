"""Addresses and headers, for tests."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.wire.proxyprotocol import SSL, TLV, Address, Kind, ProxyHeader

PORTS = st.integers(0, 65535)


def ipv4(host: str, port: int) -> IPv4Address:
    return IPv4Address("TCP", host, port)


def ipv6(host: str, port: int) -> IPv6Address:
    return IPv6Address("TCP", host, port)


CLIENT, HERE = ipv4("192.0.2.1", 56324), ipv4("192.0.2.2", 443)
CLIENT_6, HERE_6 = ipv6("2001:db8::1", 56324), ipv6("2001:db8::2", 443)


def any_address() -> st.SearchStrategy[IPv4Address | IPv6Address]:
    return st.one_of(
        st.builds(ipv4, st.ip_addresses(v=4).map(str), PORTS),
        st.builds(ipv6, st.ip_addresses(v=6).map(str), PORTS),
    )


def any_unix() -> st.SearchStrategy[UNIXAddress]:
    """Those whose name says where it ends."""
    names = st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name)
    return st.builds(UNIXAddress, st.one_of(st.none(), names, names.map(lambda name: b"\0" + name)))


def any_ssl() -> st.SearchStrategy[SSL]:
    within = st.builds(TLV, st.integers(0x21, 0x28), st.binary(max_size=20))
    return st.builds(
        SSL,
        st.integers(0, 7),
        st.integers(0, 2**32 - 1),
        st.lists(within, max_size=5).map(tuple),
    )


def any_tlvs() -> st.SearchStrategy[tuple[TLV, ...]]:
    """All but padding and checksums."""
    own = {Kind.NOOP, Kind.CRC32C, Kind.UNIQUE_ID, Kind.SSL}
    one = st.one_of(
        st.builds(
            TLV, st.integers(1, 255).filter(lambda kind: kind not in own), st.binary(max_size=40)
        ),
        st.builds(TLV, st.just(int(Kind.UNIQUE_ID)), st.binary(max_size=128)),
        any_ssl().map(lambda ssl: TLV(Kind.SSL, ssl.encode())),
    )
    return st.lists(one, max_size=8).map(tuple)


def any_header() -> st.SearchStrategy[ProxyHeader]:
    """Any that says the same when it has been sent with version 2."""
    return st.one_of(
        st.builds(ProxyHeader, tlvs=any_tlvs()),
        _between(st.builds(ipv4, st.ip_addresses(v=4).map(str), PORTS)),
        # A network in which no address looks like one of IPv4.
        _between(st.builds(ipv6, st.ip_addresses(network="2001:db8::/32").map(str), PORTS)),
        _between(any_unix()),
    )


def _between(addresses: st.SearchStrategy[Address]) -> st.SearchStrategy[ProxyHeader]:
    return st.builds(ProxyHeader, addresses, addresses, tlvs=any_tlvs())
