"""Tests of `fwdrelay.observe`."""
