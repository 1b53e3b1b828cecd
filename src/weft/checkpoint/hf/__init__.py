"""Hugging Face checkpoints: which weft reads and writes, under which names, and what it refuses."""
