"""Bodies in Triton for NVIDIA GPUs: the same names and ports as in `ops`, fewer passes.

No body here waits for the device, adds atomically, or leaves the order of a sum to chance: each
gives the same bits every time. The definition of each is the reference of the same name.
"""
