"""`python -m edgebert` is `edgebert`."""

from edgebert.cli import main

if __name__ == "__main__":
    main()
