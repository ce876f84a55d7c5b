"""Tests of `fwdrelay.upstream.discovery`."""
