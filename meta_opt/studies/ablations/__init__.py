"""Parts of the shipped weights set to zero."""
