"""Answers: how is a corpus larger than memory kept? Shards of tokens, and their manifest."""
