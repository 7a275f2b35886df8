"""All faults by their names."""

from __future__ import annotations

from scripts.proofs.faults import networks, outages, processes, troubles

FAULTS = {fault.name: fault for fault in (*processes.FAULTS, *networks.FAULTS, *outages.FAULTS, *troubles.FAULTS)}
