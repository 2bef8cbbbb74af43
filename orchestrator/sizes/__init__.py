"""How large models are, from their config.json."""
