"""The modules inside the roles: policy and value networks, their heads, attention over packed rows, LoRA."""
