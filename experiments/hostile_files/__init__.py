"""Fuzzing of file readers: formats, mutations and a worker process."""
