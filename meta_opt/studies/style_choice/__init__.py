"""Choice between weights of the optimizer by leaving one style of task out."""
