"""Workloads: model, loss, data and evaluation, in one object for any run."""
