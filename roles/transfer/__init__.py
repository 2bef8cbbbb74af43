"""The actor's weights on their way to the engines, and the proof that they arrived."""
