"""What the controller sees: static tensor descriptions, statistics, progress."""
