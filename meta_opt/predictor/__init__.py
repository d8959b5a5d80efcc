"""Trains a model on a table of samples, and chooses the task and all settings.

>>> import meta_opt
>>> predictor = meta_opt.fit("samples.jsonl")  # doctest: +SKIP
"""
