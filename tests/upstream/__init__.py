"""Tests of `fwdrelay.upstream`."""
