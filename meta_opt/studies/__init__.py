"""Studies that compare many runs, each with measurements and a report."""
