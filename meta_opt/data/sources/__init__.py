"""Where samples come from: bundled, prepared, or a user's own files."""
