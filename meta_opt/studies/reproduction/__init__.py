"""Reproduction of published numbers."""
