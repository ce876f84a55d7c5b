"""Tests of `fwdrelay.upstream.health`."""
