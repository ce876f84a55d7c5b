"""Tests of `fwdrelay.upstream.elect`."""
