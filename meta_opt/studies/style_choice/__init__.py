"""Selection of optimizer weights, evaluated by leaving out one style of task."""
