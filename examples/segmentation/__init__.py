"""Semantic segmentation with a Graph LSTM over superpixels: handwritten digits on photographs, pixel by pixel."""
