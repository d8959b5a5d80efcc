"""Pictures, sound and text as arrays and tokens."""
