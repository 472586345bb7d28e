"""Where readings lie, and in which version."""
