"""Comparison of MELTR with other combinations of losses."""
