"""Reads a saved .mlpackage, as it ships, with NumPy and the standard library alone."""
