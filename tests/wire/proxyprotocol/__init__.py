"""Tests of `fwdrelay.wire.proxyprotocol`."""
