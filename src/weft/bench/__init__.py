"""How fast: what a task, a lane crossing and a step cost on this machine, measured."""
