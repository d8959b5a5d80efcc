"""The gain of each part of the framework over plain fine-tuning on the suite."""
