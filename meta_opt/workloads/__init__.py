"""What is trained: model, loss, data and evaluation, as one value for any run."""
