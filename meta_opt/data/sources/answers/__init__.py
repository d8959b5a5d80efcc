"""Questions about named pictures, for pre-training models that answer in words.

``pictures`` reads emoji and stamps with what is known of them, ``questions`` asks,
``files`` writes the data set.
"""
