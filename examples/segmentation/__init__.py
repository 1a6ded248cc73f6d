"""Semantic segmentation with a Graph LSTM over superpixels: which material is what, pixel by pixel."""
