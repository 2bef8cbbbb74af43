"""What an engine is to generate: sampling parameters, the turns of a conversation, environments."""
