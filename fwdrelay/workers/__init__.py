"""
Several relay processes as one: a supervisor that holds what must outlive them, and workers that relay.

What one relay process does is in `fwdrelay.relay` and knows nothing of this.
"""
