"""When each operator runs: actions, orders of a program over lanes, their check and text."""
