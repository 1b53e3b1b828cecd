"""The whole step: what, where and when joined into the checked schedule of one training step."""
