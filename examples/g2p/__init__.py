"""Spelling to pronunciation: a trained GRU encoder-decoder, exported with its greedy and beam search."""
