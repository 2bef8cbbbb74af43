"""What an engine is asked to generate: sampling parameters, turns of a conversation, environments."""
