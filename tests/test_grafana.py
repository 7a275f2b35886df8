"""docker/grafana.json asks for what gateways and workers serve."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from impetus_gateway.seeing.metrics import Metrics
from impetus_producer.watching.fleet import Fleet, QueueState, WorkerState
from impetus_worker.observing.metrics import _instruments
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DASHBOARD = json.loads((ROOT / "docker" / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
_KIND = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def served() -> set[str]:
    """The names of all that a gateway and a worker serve."""
    fleet = Fleet(
        queues=(QueueState("embedding", 1, 1, 1, 1, 1.0),),
        workers=(WorkerState("w", "idle", ("embedding",), 0, 0.0, True, role="embedding"),),
        suspended=False,
    )
    gateway: Any = Metrics(SimpleNamespace(fleet=fleet), SimpleNamespace(running=0))  # type: ignore[arg-type]
    _instruments()
    return names(text_string_to_metric_families(gateway.exposition().decode())) | names(REGISTRY.collect())


def names(families: Iterable[Any]) -> set[str]:
    return {family.name + end for family in families for end in _KIND.get(family.type, ())}


def test_every_figure_that_the_dashboard_asks_for_is_served() -> None:
    asked = {
        name for panel in PANELS for target in panel["targets"] for name in re.findall(r"\bimpetus_\w+", target["expr"])
    }
    assert len(asked) > 20
    assert asked <= served()


def test_grafanas_own_models_read_all_of_it() -> None:
    plugins.register_default_plugins()
    read = dashboard.Dashboard.from_json(DASHBOARD)
    written = json.loads(JSONEncoder().encode(read))
    assert [each for each in fields(DASHBOARD) if each not in set(fields(written))] == []


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no object and no list, with where it is."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from fields(each, f"{path}/{key}")
    else:
        yield path, value


def test_panels_lie_side_by_side_within_the_page_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert all(panel["description"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
