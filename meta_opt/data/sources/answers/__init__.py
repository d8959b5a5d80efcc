"""Questions about named images, to pre-train models that answer in text.

``pictures`` reads emoji and stamps with their metadata, ``questions`` makes questions
and answers, ``files`` writes the data set.
"""
