"""Metrics, progress on the terminal, report.html and the files of a run."""
