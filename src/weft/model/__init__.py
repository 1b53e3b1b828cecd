"""What is computed: the layer, the model around it, its parameters, families and counts."""
