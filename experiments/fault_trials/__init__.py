"""Fault injection for runs: kills, damaged files, lost resources; see ``faults.py``."""
