"""Memory and time of a step, predicted from arithmetic, bandwidth and lengths. No Ray."""
