"""The running program, driven over real sockets: one scenario a test, named after the behaviour."""
