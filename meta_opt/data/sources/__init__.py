"""Sources of samples: bundled data, prepared datasets and a user's own files."""
