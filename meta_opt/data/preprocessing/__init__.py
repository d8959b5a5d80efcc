"""Images, audio and text as arrays and tokens."""
