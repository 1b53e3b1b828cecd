"""What a program is: dims, the operator vocabulary, programs, recording, the derived backward, text."""
