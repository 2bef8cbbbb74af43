"""Sizes of models, computed from their config.json."""
