"""The rollout viewer: a local page that shows what runs have measured and written, while they run and later."""
