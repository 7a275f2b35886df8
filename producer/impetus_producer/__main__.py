"""The program `impetus`, also as `python -m impetus_producer`."""

import signal


def main() -> None:
    # Whoever presses Ctrl-C while this loads, of which nothing is left, has no use for a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli.main import main as run

    run()


if __name__ == "__main__":
    main()
