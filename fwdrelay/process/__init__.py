"""
What one relay process is to the machine around it.

Here live the conversations with what starts, stops and watches the process; what it relays does not.
"""
