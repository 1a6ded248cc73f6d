"""A recurrent cell of one's own: a minGRU that spells, trained, exported and served."""
