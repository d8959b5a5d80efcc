"""Evaluators: metrics of a model on the arrays of a split."""
