"""What learned combinations of losses cost in training throughput."""
