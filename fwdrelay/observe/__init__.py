"""What is told of sessions, and to whom: one event per ended session, and the access log."""
