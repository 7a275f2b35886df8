"""Shapes for the texts that come: looked for beside the work, converted in a process of their own, and taken over
between two batches.

What is found passes all that a package passes when it is loaded, and the accuracy gate: in the converting process,
which also has the device compile it, and the golden check once more here. Whatever fails leaves the shapes there were,
is told with its reason, and is not tried again for a day.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from impetus_backends.embedding.devices import golden
from impetus_backends.embedding.devices.packages.backend import PackagedEmbeddingBackend, needed_bytes
from impetus_backends.embedding.devices.packages.buckets import GUESSED_CALL_TOKENS
from impetus_backends.embedding.devices.packages.cache import Recipe
from impetus_backends.embedding.devices.packages.fitting import fit
from impetus_backends.embedding.devices.packages.served import Trial
from impetus_backends.errors import BackendError
from impetus_backends.machine import spare

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from impetus_backends.embedding.devices.packages.fitting import Fit
    from impetus_backends.engine_config import Fitting
    from impetus_backends.models import ModelFiles

CONVERTING = "impetus_backends.embedding.devices.packages.converting"
_TRIED_S = 24 * 3600.0
_LONGEST_S = 2 * 3600.0
"""A conversion that takes longer is ended."""
_POLL_S = 0.5
_log = logging.getLogger(__name__)


class Fitter:
    """A thread that fits the shapes of one loaded backend: its `Shapes`.

    `memory_bytes`: what the package that serves and the one to come may need together.
    """

    def __init__(
        self, backend: PackagedEmbeddingBackend, files: ModelFiles, terms: Fitting, memory_bytes: int | None = None
    ) -> None:
        assert backend.recipe is not None, "load() comes first"
        # Nothing here keeps the backend itself, which ends this when it is closed.
        self._config, self._cache, self._name = backend.config, backend.cache, backend.name
        self._make_device, self._recipe, self._call_tokens = backend.make_device, backend.recipe, backend.call_tokens
        self._files, self._terms, self._memory_bytes = files, terms, memory_bytes
        self._served = self._cache.served(self._recipe.fingerprint, self._config.text.max_tokens)
        self._judged = 0
        """How many texts were counted when shapes were last looked for."""
        self._ready: PackagedEmbeddingBackend | None = None
        self._superseded: Recipe | None = None
        """Of the package that served before, if it was made here too."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shapes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Also what is being converted."""
        self._stopped.set()

    def count(self, rows: Sequence[np.ndarray]) -> None:
        self._served.add(map(len, rows))

    def take(self) -> PackagedEmbeddingBackend | None:
        ready, self._ready = self._ready, None
        return ready

    def _run(self) -> None:
        while not self._stopped.wait(self._terms.look_s):
            try:
                self._look()
            except Exception:  # noqa: BLE001 - nobody waits for this, and the backend serves on
                _log.exception("looking for better shapes failed; those there are stay")

    def _look(self) -> None:
        try:
            self._served.keep(call_tokens=self._call_tokens)
        except OSError as error:
            _log.debug("the lengths of texts could not be written down: %s", error)
        if self._superseded is not None and self._ready is None:
            self._cache.remove(self._superseded)
            self._superseded = None
        new = self._served.fresh - self._judged
        if not spare.is_allowed() or new < self._terms.after_texts or self._served.tried_within(_TRIED_S):
            return
        self._judged = self._served.fresh
        call_tokens = GUESSED_CALL_TOKENS if self._call_tokens is None else self._call_tokens
        found = fit(self._config.text.max_tokens, self._served.counts, self._recipe.buckets, call_tokens)
        if found is None:
            return
        _log.info(
            "%s would save %.0f %% of the padded work of %d texts like those that came: converting, in the background",
            found.shapes, 100 * found.saved, found.texts,
        )  # fmt: skip
        try:
            self._try(found)
        except Exception as error:  # noqa: BLE001 - whatever a device's library raises, the backend serves on
            _log.warning("the shapes stay as they are: %s", error)
            self._note(found, f"failed: {error}")

    def _try(self, found: Fit) -> None:
        """Raises `BackendError` with the reason why the shapes stay."""
        if self._recipe.calibration:
            raise BackendError("the package was calibrated on texts that are not kept: run `impetus-worker convert`")
        needed = sum(needed_bytes(self._config, buckets) for buckets in (self._recipe.buckets, found.buckets))
        if self._memory_bytes is not None and needed > self._memory_bytes:
            raise BackendError(f"both packages together would need {needed / 2**30:.1f} GiB of memory")
        recipe = Recipe(self._recipe.fingerprint, self._recipe.mode, found.buckets)
        if not self._converted(recipe):
            return  # stopped: it may be tried again
        fresh = PackagedEmbeddingBackend(
            self._config, self._make_device, self._cache, name=self._name, buckets=recipe.buckets, mode=recipe.mode
        )
        try:
            fresh.load()
            report = golden.check(fresh, self._config, self._files.folder)
        except Exception:
            self._cache.remove(recipe)
            raise
        try:
            self._cache.prefer(recipe)
        except OSError as error:
            raise BackendError(f"the package could not be preferred: {error}") from error
        said = f"served, least cosine {report.least_cosine:.6f}"
        _log.info("from the next batch on: %s (golden check passed, least cosine %.6f)", found.shapes,
                  report.least_cosine)  # fmt: skip
        self._note(found, said)
        self._superseded = self._recipe if self._cache.is_fitted(self._recipe) else None
        self._recipe, self._call_tokens = recipe, fresh.call_tokens
        self._ready = fresh

    def _converted(self, recipe: Recipe) -> bool:
        """Whether another process made the package, and nothing stopped it. Raises `BackendError` with its reason."""
        request = {
            "folder": str(self._files.folder), "model": self._files.name, "backend": self._name,
            "fingerprint": recipe.fingerprint, "mode": recipe.mode, "cache": str(self._cache.root),
            "buckets": [[bucket.batch, bucket.length, bucket.texts] for bucket in recipe.buckets],
        }  # fmt: skip
        # Its standard input stays open for as long as this process lives.
        with subprocess.Popen(
            [sys.executable, "-P", "-m", CONVERTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass  # it died at once, which its status tells
            over_at = time.monotonic() + _LONGEST_S
            while process.poll() is None:
                if self._stopped.wait(_POLL_S) or not spare.is_allowed():
                    process.kill()
                    _log.info("the conversion is given up for now: there is other need of this machine's power")
                    return False
                if time.monotonic() > over_at:
                    process.kill()
                    raise BackendError(f"the conversion took more than {_LONGEST_S / 3600:.0f} hours")
            lines = process.stdout.read().splitlines()
        try:
            answer = json.loads(lines[-1])
            reason = answer["reason"]
        except (IndexError, ValueError, TypeError, KeyError):
            raise BackendError(f"the conversion ended without an answer (status {process.returncode})") from None
        if reason is not None:
            raise BackendError(str(reason))
        return True

    def _note(self, found: Fit, said: str) -> None:
        try:
            self._served.keep(trial=Trial(time.time(), found.shapes, said))
        except OSError as error:
            _log.debug("what came of other shapes could not be written down: %s", error)
