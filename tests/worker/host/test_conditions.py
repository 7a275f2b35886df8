"""What battery and heat say to a worker, by recorded answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from impetus_producer.contract import WorkerRecord
from impetus_worker.fleet.routing import Routing
from impetus_worker.host.conditions import Conditions, Watch, of_linux, of_macos
from impetus_worker.inbox import Shared
from impetus_worker.leases.portions import ALONE, Share

from ..fleet.test_shares import GPU, record

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=21233763)\t{charge}%; discharging; 4:12 remaining present: true
"""
MAINS = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=21233763)\t17%; charging; 1:05 remaining present: true
"""
COOL = "com.apple.system.thermalpressurelevel 0\n"


@pytest.mark.parametrize(
    ("battery", "thermal", "against"),
    [
        (BATTERY.format(charge=19), COOL, "on battery at 19 %, less than 20 %"),
        (BATTERY.format(charge=20), COOL, None),
        (MAINS, COOL, None),
        (MAINS, COOL.replace("0", "1"), None),
        (MAINS, COOL.replace("0", "2"), "this machine is hot (thermal pressure 2)"),
        ("Now drawing from 'AC Power'\n", "", None),  # one without a battery, and no notifyutil
        ("", "notifyutil: failed, status 9\n", None),
        ("Now drawing from 'Battery Power'\n", "something else 3", None),
    ],
)
def test_bulk_waits_for_a_machine_that_is_hot_or_low_on_battery(
    battery: str, thermal: str, against: str | None
) -> None:
    assert of_macos(battery, thermal).reason_against_bulk(20) == against


def test_linux_says_whether_a_battery_discharges(tmp_path: Path) -> None:
    assert of_linux(tmp_path / "nowhere") == Conditions()
    for supply, said in {"AC": {"type": "Mains"}, "BAT0": {"type": "Battery", "status": "Full"}}.items():
        (tmp_path / supply).mkdir()
        for name, value in said.items():
            (tmp_path / supply / name).write_text(f"{value}\n")
    assert of_linux(tmp_path) == Conditions()
    (tmp_path / "BAT0/status").write_text("Discharging\n")
    assert of_linux(tmp_path) == Conditions(on_battery=True)
    (tmp_path / "BAT0/capacity").write_text("64\n")
    assert of_linux(tmp_path) == Conditions(on_battery=True, charge_percent=64)


def test_energy_is_preferred_on_battery_unless_it_is_said_otherwise() -> None:
    preferred = {
        (wanted, on_battery): Watch(wanted, 20, lambda: Conditions(on_battery)).preference()  # noqa: B023
        for wanted in ("auto", "speed", "energy")
        for on_battery in (False, True)
    }
    assert preferred == {
        ("auto", False): "speed", ("auto", True): "energy",
        ("speed", False): "speed", ("speed", True): "speed",
        ("energy", False): "energy", ("energy", True): "energy",
    }  # fmt: skip


def test_the_machine_is_looked_at_every_half_minute(caplog: pytest.LogCaptureFixture) -> None:
    now, seen = 0.0, [Conditions(), Conditions(thermal_level=3), Conditions(thermal_level=1)]
    watch = Watch("auto", 20, lambda: seen.pop(0), clock=lambda: now)
    against = []
    for at in (0.0, 29.0, 30.0, 59.0, 60.0):
        now = at
        watch.preference()
        against.append(watch.against_bulk is not None)
    assert against == [False, False, True, True, False]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["no bulk is taken: this machine is hot (thermal pressure 3)", "bulk is taken again"]


def test_who_takes_no_bulk_says_so_and_has_no_share_of_it(connection: Redis) -> None:
    hot, told = Watch("auto", 20, lambda: Conditions(thermal_level=2)), list[object]()
    places = {
        name: Routing(
            record(name, GPU),
            is_serving=lambda: True,
            engine_deaths=lambda: 0,
            cost=lambda: GPU,
            conditions=hot if name == "hot" else None,
            tell=told.append if name == "cool" else lambda fact: None,
        )
        for name in ("hot", "cool")
    }
    for name in ("hot", "cool"):
        places[name].look(connection)
    said = connection.get("impetus:worker:hot")
    assert isinstance(said, bytes)
    assert not WorkerRecord.model_validate_json(said).bulk
    assert told[0] == Shared((Share(0.5, 0.5), ALONE))


def test_there_is_power_for_what_nobody_waits_for_on_mains_and_while_cool() -> None:
    assert not Watch("auto", 20, lambda: Conditions()).has_to_spare  # nobody has looked yet
    to_spare = {}
    for seen in (Conditions(), Conditions(on_battery=True, charge_percent=99), Conditions(thermal_level=2)):
        watch = Watch("auto", 20, lambda: seen)  # noqa: B023
        watch.preference()
        to_spare[seen] = watch.has_to_spare
    assert list(to_spare.values()) == [True, False, False]
