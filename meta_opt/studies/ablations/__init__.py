"""Ablations of the shipped weights of the learned optimizer."""
