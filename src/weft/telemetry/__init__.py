"""What a run says of itself: one JSON object a step, and lines or a bar for people."""
