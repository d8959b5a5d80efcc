"""Ablations: parts of the shipped weights set to zero."""
