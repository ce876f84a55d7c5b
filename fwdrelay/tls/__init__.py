"""
TLS as this relay speaks it: which certificates are shown to whom, who is let in, and what went wrong.

`server` is for listeners, `upstream` for pools, `files` for what changes on the disk meanwhile. Bytes are
not moved here: both make connections of pyOpenSSL, which whoever has the socket drives.
"""

from .explain import explain
from .files import Files
from .peer import Peer, PeerRefused
from .pem import File
from .server import ServerTLS
from .upstream import UpstreamTLS

__all__ = ["File", "Files", "Peer", "PeerRefused", "ServerTLS", "UpstreamTLS", "explain"]
