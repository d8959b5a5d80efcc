"""Comparison of methods that balance modalities in multimodal classification."""
