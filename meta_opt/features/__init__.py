"""Inputs of the controller: static tensor descriptions, statistics, progress."""
