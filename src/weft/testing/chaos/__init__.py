"""Answers: what is left of a run's promises when something breaks? Each file breaks one thing."""
