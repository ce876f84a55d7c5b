"""
What peers say on the wire before and besides what is relayed: bytes to values and back.

Nothing here does I/O or knows a reactor. `clienthello` is the first message of TLS, `proxyprotocol`
HAProxy's PROXY protocol.
"""
