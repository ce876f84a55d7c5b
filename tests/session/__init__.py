"""Tests of `fwdrelay.session`."""
