"""Published numbers measured again."""
