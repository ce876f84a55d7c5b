"""Tests of `fwdrelay.wire`."""
