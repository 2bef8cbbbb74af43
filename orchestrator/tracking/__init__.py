"""Trackers: services and stores that a run's metrics, alerts and report go to besides its own files."""
