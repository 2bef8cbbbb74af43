"""Training and scoring on sharded models: the only place that imports DeepSpeed."""
