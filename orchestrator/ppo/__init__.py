"""One PPO step: scores, advantages, experience and the order of the calls to the roles."""
