"""The transfer of the actor's weights to the engines, and the proof that they arrived."""
