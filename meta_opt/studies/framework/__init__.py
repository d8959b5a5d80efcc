"""What each part of the framework adds to plain fine-tuning on the suite."""
