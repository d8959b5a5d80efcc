"""Compares MELTR with other ways of combining losses."""
