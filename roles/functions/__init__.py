"""The user's own Python function or class in a child process."""
