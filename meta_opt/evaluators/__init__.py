"""Evaluators, which compute metrics of a model on the arrays of a split."""
