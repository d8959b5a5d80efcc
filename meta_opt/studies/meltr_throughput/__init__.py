"""The cost of learned combinations of losses in training throughput."""
