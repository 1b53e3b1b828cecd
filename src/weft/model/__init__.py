"""What is computed: the layer, the language model around it, its parameters, families and counts."""
