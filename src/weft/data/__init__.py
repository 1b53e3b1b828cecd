"""Answers: which tokens does a step see? Corpus, byte tokens, order, batches, a trigram to beat."""
