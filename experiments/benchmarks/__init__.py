"""What `experiments.benchmark` measures, by subject."""
