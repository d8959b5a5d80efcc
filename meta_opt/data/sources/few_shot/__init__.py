"""Few examples of many classes in phases and resolutions, from any classified images.

``items`` and ``clipart`` find images and their classes, ``protocol`` chooses and
divides them, ``files`` writes the data set.
"""
