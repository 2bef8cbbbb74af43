"""The driver: configuration, the PPO loop, advantages, checkpoints, reports and the command line."""
