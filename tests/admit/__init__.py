"""Tests of `fwdrelay.admit`."""
