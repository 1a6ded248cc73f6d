"""Two algorithms that a Grid LSTM learns: the parity of a string at once, and the sum of two numbers."""
