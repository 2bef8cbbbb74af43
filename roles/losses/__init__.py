"""The losses and what they are made of: tensors in, tensors out."""
