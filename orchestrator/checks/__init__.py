"""What is checked before anything expensive starts: data, models, functions, folders."""
