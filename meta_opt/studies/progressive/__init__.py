"""Fine-tuning on few examples, phase after phase, from zero-shot on."""
