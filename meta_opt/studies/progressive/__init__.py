"""Progressive few-shot fine-tuning in phases, starting from zero-shot."""
