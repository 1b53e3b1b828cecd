"""A million times: the life of a run, from recipe to sample, on every rank."""
