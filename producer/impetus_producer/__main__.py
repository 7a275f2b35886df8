"""`python -m impetus_producer` is the `impetus` command."""

from .cli.main import main

if __name__ == "__main__":
    main()
