"""Whether a cluster can hold a plan, and the smallest change that makes it fit. No Ray."""
