"""What ships with the package, and the commands that made it."""

from pathlib import Path

BUNDLED = Path(__file__).parent
"""The folder of the files."""
