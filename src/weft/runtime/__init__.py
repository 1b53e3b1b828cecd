"""Makes it so: bodies for operators, memory for parameters, and the executor that runs a step."""
