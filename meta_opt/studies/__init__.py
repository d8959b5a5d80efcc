"""Studies that compare many runs, each with its measurement and report."""
