"""Comparison of ways to balance modalities on a multimodal classification task."""
