"""Stress test of image classifiers: conditions, predictions, summary, report."""
