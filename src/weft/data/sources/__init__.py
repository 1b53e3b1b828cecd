"""Answers: where do documents come from? One file a source: how it is cut in parts, and read."""
