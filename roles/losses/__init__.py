"""Losses and their parts, as pure functions: tensors flow in, tensors flow out."""
