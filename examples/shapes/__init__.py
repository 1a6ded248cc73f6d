"""The five shapes of sequence tasks, each a small module to take and change, with any cell."""
