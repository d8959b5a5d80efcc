"""Optimizers without tuning against tuned baselines, on held-out tasks."""
