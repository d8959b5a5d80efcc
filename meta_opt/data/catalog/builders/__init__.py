"""TFDS builders; they need no TensorFlow and read a manual folder.

Importing a module of this package registers its builder with TFDS.
"""
