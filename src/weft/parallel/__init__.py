"""Where each piece lives: the layout, and how attention, experts and state are spread over it."""
