"""The groups of ranks as the loops call them: starting them, spreading rows over them."""
