"""The command line: what a person types, and how an error reads."""
