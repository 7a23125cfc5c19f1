"""``python -m truthheads``."""

from truthheads.cli import main

if __name__ == "__main__":
    main()
