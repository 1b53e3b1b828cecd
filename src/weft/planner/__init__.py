"""At what price: machines as data, what a task costs on one, and how long a whole step takes."""
