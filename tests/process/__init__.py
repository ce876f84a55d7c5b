"""Unit tests of `fwdrelay.process`."""
