"""Comparison of published numbers with new measurements."""
