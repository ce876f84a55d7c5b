"""Tests of `fwdrelay.admin`."""
