"""TFDS builders that read manually downloaded files, without TensorFlow.

Importing a module of this package registers its builder with TFDS.
"""
