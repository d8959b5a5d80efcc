"""Checks that remeasure published numbers, one cell at a time."""
