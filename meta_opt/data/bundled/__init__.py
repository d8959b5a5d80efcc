"""Data files that ship with the package, and the commands that make them."""

from pathlib import Path

BUNDLED = Path(__file__).parent
"""The folder of the data files."""
