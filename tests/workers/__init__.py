"""Unit tests of `fwdrelay.workers`."""
