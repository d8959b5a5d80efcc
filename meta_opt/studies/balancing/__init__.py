"""Balancing of modalities compared on one multimodal classification."""
