"""Tests of fwdrelay. Units mirror the package's tree; `scenarios/` drive the running program."""
