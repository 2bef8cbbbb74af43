"""The four roles of PPO (actor, critic, reward, reference), the vLLM half of the actor, and their mathematics."""
