"""When each operator runs: actions, orders of one program over lanes, their check and their text."""
