"""Progressive few-shot fine-tuning: phase by phase, starting from zero-shot."""
