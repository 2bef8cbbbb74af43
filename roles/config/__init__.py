"""The configuration sections of the roles. No torch, no engines."""
