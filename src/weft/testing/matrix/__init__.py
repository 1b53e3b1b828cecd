"""Every parallelism against one rank: a table of layouts, layouts drawn at random, refusals."""
