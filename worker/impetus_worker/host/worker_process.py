"""One worker process, as the supervisor starts it: `python -m impetus_worker.host.worker_process`."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from functools import partial

from impetus_producer.errors import ImpetusError

from .. import logs
from ..settings import WorkerSettings
from .supervisor import EXIT_CONFIGURATION


def main() -> None:
    """Settings are the first line of standard input, whose end is the end of the supervisor."""
    # It has no terminal, and nor has the engine, which inherits this: only the supervisor decides.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logs.set_up()
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (part := os.read(0, 1)):
            return
        line += part
    settings = WorkerSettings.from_json(line.decode())
    # What is imported stays, and is looked through for garbage neither meanwhile nor later.
    gc.disable()
    from impetus_backends.errors import BackendError

    from ..companions.link import client
    from ..errors import ConfigurationError
    from ..roles import import_for
    from ..worker import QueueWorker

    import_for(settings.role)
    gc.freeze()
    gc.enable()
    try:
        status = QueueWorker(settings, [partial(client, url) for url in settings.redis_urls], lifeline=0).run()
    except (ConfigurationError, BackendError) as error:
        logging.getLogger(__name__).error("%s: %s", settings.role, error)
        status = EXIT_CONFIGURATION
    except ImpetusError as error:
        logging.getLogger(__name__).error("%s: %s", settings.role, error)
        status = 1
    except Exception:
        logging.getLogger(__name__).exception("%s: a fault of Impetus's own", settings.role)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
