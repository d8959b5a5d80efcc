"""Studies that compare many runs; each has a measurement and a report."""
