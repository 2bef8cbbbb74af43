"""The kinds of run: one file per stage, and the run object that they share."""
