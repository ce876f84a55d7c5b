"""Tests of `fwdrelay.pump`."""
