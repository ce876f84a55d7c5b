"""
What only a process knows of a session that it relays, as a value: with the descriptors of its sockets and
pipes, all that another process needs to go on with it.

It crosses from one version of fwdrelay to the next: what is unknown is ignored, what is missing has its default.
"""

from __future__ import annotations

import json

import attrs
from attrs import frozen

from ..pump.tcp_info import FlowOrigin


@frozen(kw_only=True)
class PortableSession:
    """
    Times are seconds since the epoch.

    @ivar session: its name, which stays.
    @ivar client: where its client is, as logs write it; `host`: that one's IP address, None for a Unix peer.
    @ivar local: the address that the client connected to.
    @ivar counted: the address that admission has counted the client by, if it has.
    @ivar address: of the target, as its configuration has it.
    @ivar retries: how many targets were tried after the first.
    @ivar bytes_up: that the client had sent when this was written; `bytes_down`: the same of the target.
    @ivar up_read: what the kernel called the bytes read from the client's socket then, less `bytes_up`: with
        that, the bytes so far can be asked of the kernel later. None: the kernel does not count them. As for all
        of these, an end that has come or was said is not among them.
    @ivar down_read: the same of the upstream's socket, and `bytes_down`.
    @ivar up_written: what the kernel called the bytes written to the upstream's socket then (those in the flow's
        pipe are among them), less `bytes_up`; `down_written`: the same of the client's socket, and `bytes_down`.
    """

    session: str
    listener: str
    client: str
    host: str | None = None
    local: str = ""
    counted: str | None = None
    pool: str = ""
    target: str = ""
    address: str = ""
    started: float = 0.0
    connected: float = 0.0
    waited: float = 0.0
    retries: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    up_read: int | None = None
    down_read: int | None = None
    up_written: int | None = None
    down_written: int | None = None
    sni: str | None = None
    alpn: str | None = None

    @property
    def origins(self) -> tuple[FlowOrigin | None, FlowOrigin | None]:
        """Of the flows up and down, as far as the kernel counts them."""
        return _origin(self.up_read, self.up_written), _origin(self.down_read, self.down_written)

    def text(self) -> str:
        """As JSON."""
        return json.dumps(attrs.asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> PortableSession:
        """
        @raise ValueError: it is none.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{text[:40]!r} is no session")
        known = {field.name for field in attrs.fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as wrong:
            raise ValueError(str(wrong)) from None


def _origin(read: int | None, written: int | None) -> FlowOrigin | None:
    return None if read is None or written is None else FlowOrigin(read, written)
