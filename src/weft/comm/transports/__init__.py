"""One file a transport: two wires, `stacked` as their meaning, `counting` around any of them."""
