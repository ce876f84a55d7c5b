"""Tests of `fwdrelay.config`."""
