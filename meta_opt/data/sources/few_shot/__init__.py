"""Few examples of many classes in phases and resolutions, from any classified pictures.

``items`` and ``clipart`` find pictures and their classes, ``protocol`` chooses and
divides them, ``files`` writes the data set.
"""
