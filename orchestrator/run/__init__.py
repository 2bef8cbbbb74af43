"""What a run keeps on disk and how it goes on: checkpoints, resuming, the clock of a step."""
