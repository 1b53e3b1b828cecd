"""How each operator is computed: the reference bodies, and those that torch has faster."""
