"""`python -m impetus_worker` is the `impetus-worker` command."""

from .cli.main import main

main()
