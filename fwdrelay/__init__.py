"""A TCP relay as a Twisted plugin."""
