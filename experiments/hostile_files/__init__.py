"""Formats, mutations and worker processes of `experiments.hostile`."""
