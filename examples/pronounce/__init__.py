"""Spelling to sound, trained from scratch: an encoder-decoder with attention that speaks phoneme by phoneme."""
