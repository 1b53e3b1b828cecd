"""How, fast: bodies for one kind of hardware, under the names of the vocabulary."""
