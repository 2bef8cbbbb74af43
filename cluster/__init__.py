"""Placement: the plan, Ray placement groups, role groups and failure detection. Knows nothing of what a role does."""
