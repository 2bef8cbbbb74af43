"""Which GPU belongs to which role: plans as pure functions of the configuration. No Ray."""
