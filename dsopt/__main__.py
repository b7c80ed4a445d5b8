"""python -m dsopt."""

from dsopt.cli import main

if __name__ == "__main__":
    main()
