"""The timeline of a run: what every rank and the driver did when, as a file for Perfetto and as a table."""
