"""A process that converts a model to other shapes and holds the package to all that it must pass; nobody waits for it.

One line of JSON on standard input says what to convert, and the last line on standard output how that went: `reason` is
null, or why there is no such package now. It is the nicest process there is, and ends with the one that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NICEST = 19
_TEXTS = 48
"""Docstrings that the package's accuracy is measured on."""
_LOCK = "converting.lock"


def convert(request: Mapping[str, Any]) -> None:
    """Leaves the package in the cache, compiled for this machine. Raises `BackendError` with the reason otherwise."""
    from impetus_backends.embedding.devices import golden
    from impetus_backends.embedding.devices.backends import make_packaged, open_reference
    from impetus_backends.embedding.devices.packages.buckets import Bucket
    from impetus_backends.embedding.devices.packages.cache import PackageCache, Recipe
    from impetus_backends.embedding.devices.packages.convert import Order, add_measured
    from impetus_backends.embedding.docstrings import some
    from impetus_backends.embedding.folder.config import read_config
    from impetus_backends.embedding.folder.weights import fingerprint
    from impetus_backends.embedding.texts.tokens import TextEncoder
    from impetus_backends.errors import BackendError

    folder, name = Path(request["folder"]), request["backend"]
    config = read_config(folder)
    recipe = Recipe(request["fingerprint"], request["mode"], tuple(Bucket(*each) for each in request["buckets"]))
    if fingerprint(config) != recipe.fingerprint:
        raise BackendError(f"the model in {folder} is another one than when it was loaded: restart the worker")
    backend = make_packaged(name, config, cache=Path(request["cache"]), buckets=recipe.buckets, mode=recipe.mode)
    cache: PackageCache = backend.cache
    rows = [text.ids for text in TextEncoder.load(folder).encode(some(_TEXTS))]
    order = Order(request["model"], config, recipe.mode, recipe.buckets, rows)
    with _alone(cache.root / _LOCK):
        was_there = cache.find(recipe) is not None
        try:
            add_measured(order, backend.make_device(), open_reference(config), cache)
            backend.load()
            golden.check(backend, config, folder)
            cache.mark_fitted(recipe)
        except BackendError:
            if not was_there:
                cache.remove(recipe)
            raise


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One such process of a user at a time; the others wait."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_with_the_other() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    # What libraries print goes elsewhere: a pipe that nobody reads meanwhile would stop them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    os.nice(_NICEST)
    reason = None
    try:
        convert(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked is to know
        from impetus_backends.errors import BackendError

        reason = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
    print(json.dumps({"reason": reason}), file=answers, flush=True)


if __name__ == "__main__":
    main()
