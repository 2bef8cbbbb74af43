"""Prompts, pairs and their columns, from files and data sets."""
