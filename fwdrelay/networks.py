"""
Sets of networks that are asked for every client: whether an address is in one of them costs about the
same for one network as for a thousand.

What an operator may write for a network is in `fwdrelay.config.grammar`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton

# What IPv4 addresses look like to an IPv6 socket (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96


def pack(address: str) -> bytes:
    """
    @param address: an IP address; the zone of an IPv6 address (`%eth0`) is of no account.
    @return: it in network order, 4 or 16 bytes; 4 for an IPv6 address that stands for an IPv4 address.
    @raise ValueError: it is no address.
    """
    try:
        if ":" not in address:
            return inet_pton(AF_INET, address)
        packed = inet_pton(AF_INET6, address.partition("%")[0])
    except OSError:
        raise ValueError(f"{address!r} is not an IP address") from None
    return packed[12:] if packed.startswith(_MAPPED) else packed


class Networks:
    """
    The addresses that are in at least one of some networks. An IPv4 address is in no IPv6 network, but in
    `::ffff:10.0.0.0/104`, which is 10.0.0.0/8 in other words.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        # Disjoint ranges in ascending order: IPv4, then IPv6. Addresses of one family have one length,
        # so their bytes have their order.
        self._starts: dict[int, list[bytes]] = {4: [], 16: []}
        self._ends: dict[int, list[bytes]] = {4: [], 16: []}
        for start, end in sorted(_range(network) for network in networks):
            starts, ends = self._starts[len(start)], self._ends[len(start)]
            if ends and start <= ends[-1]:
                ends[-1] = max(end, ends[-1])
            else:
                starts.append(start)
                ends.append(end)

    def holds(self, packed: bytes) -> bool:
        """
        @param packed: an address as `pack` makes it.
        """
        at = bisect_right(self._starts[len(packed)], packed)
        return at > 0 and packed <= self._ends[len(packed)][at - 1]

    def __contains__(self, address: str) -> bool:
        """
        @raise ValueError: it is no IP address.
        """
        return self.holds(pack(address))

    def __bool__(self) -> bool:
        """Whether any address is in them."""
        return bool(self._starts[4] or self._starts[16])


def _range(network: IPv4Network | IPv6Network) -> tuple[bytes, bytes]:
    """The first and the last address."""
    start, end = network.network_address.packed, network.broadcast_address.packed
    if network.prefixlen >= _MAPPED_BITS and start.startswith(_MAPPED):
        return start[12:], end[12:]
    return start, end
