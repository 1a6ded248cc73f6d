"""Handwritten numbers, read aloud: an image becomes as many English words as it takes."""
