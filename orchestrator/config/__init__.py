"""The configuration: its sections, its loading from YAML, and the rules between its keys."""
