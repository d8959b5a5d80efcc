"""Comparison of untuned optimizers with tuned baselines on held-out tasks."""
