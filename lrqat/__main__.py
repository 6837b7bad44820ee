"""`python -m lrqat`."""

from lrqat.cli.program import main

if __name__ == "__main__":
    main()
