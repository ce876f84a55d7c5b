"""
What one relay process is to the machine around it.

Here live the conversations with what starts and watches the process; what the process relays does not.
"""
