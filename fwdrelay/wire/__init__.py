"""
What peers say on the wire before and besides what is relayed: bytes to values and back.

Nothing here does I/O or knows a reactor. `proxyprotocol` is HAProxy's PROXY protocol.
"""
