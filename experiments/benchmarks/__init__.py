"""Benchmarks of `experiments.benchmark`, by subject."""
