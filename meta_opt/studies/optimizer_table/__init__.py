"""The optimizers of Table 1, compared on the multimodal suite."""
