"""Stress test of picture classifiers: conditions, predictions, summary, report."""
