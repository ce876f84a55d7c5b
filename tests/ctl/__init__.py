"""Tests of `fwdrelay.ctl`."""
