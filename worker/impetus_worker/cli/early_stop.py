"""Being told to stop before there is anything to stop."""

from __future__ import annotations

import signal

from ..host.supervisor import STOP_SIGNALS


class EarlyStop:
    """From when it is made until a supervisor hears signals itself, one that means stop ends the program with status 0:
    there is nothing to finish, and that is no failure. What `nohup` has it ignore stays ignored.
    """

    def __init__(self) -> None:
        self.heard = False
        # Whoever started this may have them wait, and then none would ever be heard, here or by what this starts.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP_SIGNALS, signal.SIGCHLD))
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)

    def check(self) -> None:
        """Ends the program if it was told to and is still there: what a handler raises goes up from where it strikes,
        and some code catches whatever comes.
        """
        if self.heard:
            raise SystemExit(0)

    def _end(self, number: int, frame: object) -> None:
        self.heard = True
        raise SystemExit(0)
