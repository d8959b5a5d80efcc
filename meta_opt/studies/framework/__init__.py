"""Contribution of each part of the framework to fine-tuning on the suite."""
