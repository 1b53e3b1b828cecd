"""Over which wire: the mesh of ranks, the collectives, and the transports that carry them."""
