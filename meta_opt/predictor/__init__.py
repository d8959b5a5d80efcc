"""A model from a file of samples: what is to be learned and how is found out.

>>> import meta_opt
>>> predictor = meta_opt.fit("samples.jsonl")  # doctest: +SKIP
"""
