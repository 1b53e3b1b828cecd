"""What was asked: a recipe as one frozen value, checked whole before anything else happens."""
