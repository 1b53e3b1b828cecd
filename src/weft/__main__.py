"""`python -m weft`: the command, where it is not on the PATH."""

from weft.cli.main import main

if __name__ == "__main__":
    main()
