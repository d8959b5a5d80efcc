"""Few-shot classification data in training phases and resolutions, from any images.

``items`` and ``clipart`` find images and their classes, ``protocol`` chooses and splits
them, ``files`` writes the data set.
"""
