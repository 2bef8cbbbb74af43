"""Rules between the keys of a configuration that no single field can state: pure functions, a broken rule a line."""
