"""Optimizers under faults: NaN, spikes, scaled losses, changing data."""
