"""Answers: how does a run survive? Files written durably, verified, and read in any layout."""
