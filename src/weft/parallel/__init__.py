"""Where each piece lives: the layout, and how attention, experts and optimizer state are spread over it."""
