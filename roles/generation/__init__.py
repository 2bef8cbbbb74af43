"""Requests to an engine: sampling parameters, the turns of a conversation, environments."""
