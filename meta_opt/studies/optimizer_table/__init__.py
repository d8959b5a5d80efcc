"""Comparison of the optimizers of Table 1 on the multimodal suite."""
