"""What `experiments.hostile` damages and how: formats, mutations, a worker process."""
