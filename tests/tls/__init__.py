"""Tests of `fwdrelay.tls`."""
