"""How parameters move: learning rates (the update itself is an operator, `ops.optimizer`)."""
