"""What a program is: dims, the operator vocabulary, recording, the derived backward, text."""
