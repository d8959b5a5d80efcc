"""From a model and the arrays of a split to metrics."""
