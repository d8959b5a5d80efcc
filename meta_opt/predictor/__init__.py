"""Automatic fine-tuning on a table of samples: task and settings are inferred.

>>> import meta_opt
>>> predictor = meta_opt.fit("samples.jsonl")  # doctest: +SKIP
"""
