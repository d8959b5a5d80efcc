"""Readers of foreign formats, and how the bundled files were made."""
