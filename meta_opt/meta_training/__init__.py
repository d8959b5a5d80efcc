"""Training the controller: unrolls of tasks, gradient estimators, the outer loop."""
