"""The version: said here, read by everything else."""

__version__ = "0.1.0"
