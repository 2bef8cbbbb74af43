"""A user's own Python function in a process of its own."""
