"""
HAProxy's PROXY protocol: a header that tells a server on whose behalf a connection was opened.

Both versions, both ways: `headers` has the value and sends it, `reading` reads it off a connection, `tlvs`
is what a header of version 2 says besides addresses. Sections are those of HAProxy's
`doc/proxy-protocol.txt`. Whose headers are believed is not decided here.
"""

from .headers import (
    LONGEST_SENT,
    SIGNATURE,
    Address,
    ProxyHeader,
    TLSFacts,
    Version,
    header,
    local_header,
)
from .reading import LONGEST, LONGEST_V1, looks_like, read
from .tlvs import MOST_TLVS, SSL, TLV, BadHeader, Kind, SSLKind, crc32c

__all__ = [
    "LONGEST",
    "LONGEST_SENT",
    "LONGEST_V1",
    "MOST_TLVS",
    "SIGNATURE",
    "SSL",
    "TLV",
    "Address",
    "BadHeader",
    "Kind",
    "ProxyHeader",
    "SSLKind",
    "TLSFacts",
    "Version",
    "crc32c",
    "header",
    "local_header",
    "looks_like",
    "read",
]
