"""Published numbers measured again, a cell at a time."""
