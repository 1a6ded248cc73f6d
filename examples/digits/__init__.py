"""Handwritten digits, read by networks that run over an image in several dimensions, or row by row."""
