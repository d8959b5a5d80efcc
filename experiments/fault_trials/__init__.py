"""Runs that are killed, damaged or starved, and what they leave: see ``faults.py``."""
