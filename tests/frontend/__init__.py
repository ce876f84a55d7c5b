"""Tests of `fwdrelay.frontend`."""
