"""Finding the item that kills the engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from impetus_worker.batches.planning.quarantine import Quarantine, Witness
from impetus_worker.leases.claims import DEATHS_ALONE


def dead(quarantine: Quarantine[Witness], group: list[Witness]) -> list[Witness]:
    """The poison, when the engine dies of a group of suspects that had nothing beside it."""
    again, poison = quarantine.after_death(group, alone=len(group) == 1)
    assert again == []
    return poison


@given(st.integers(1, 64), st.data())
def test_one_culprit_is_found_and_nobody_else_is_blamed(count: int, data: st.DataObject) -> None:
    items = [Witness() for _ in range(count)]
    culprit = items[data.draw(st.integers(0, count - 1))]
    quarantine: Quarantine[Witness] = Quarantine()
    assert quarantine.after_death(items, alone=count == 1) == (items, [])
    blamed = dead(quarantine, items)
    finished: list[Witness] = []
    deaths = 2
    while quarantine:
        group = quarantine.next_group()
        if culprit in group:
            deaths += 1
            blamed += dead(quarantine, group)
        else:
            finished += group
    assert blamed == [culprit]
    assert set(finished) == {*items} - {culprit}
    assert deaths <= DEATHS_ALONE + 1 + count.bit_length()


def test_the_first_death_is_held_against_nobody() -> None:
    items = [Witness() for _ in range(16)]
    quarantine: Quarantine[Witness] = Quarantine()
    assert quarantine.after_death(items, alone=False) == (items, [])
    assert not quarantine


def test_only_those_that_met_two_deaths_are_suspects() -> None:
    old, new = Witness(), Witness()
    quarantine: Quarantine[Witness] = Quarantine()
    quarantine.after_death([old], alone=False)
    assert quarantine.after_death([old, new], alone=False) == ([new], [])
    assert list(quarantine) == [old]


def test_random_kills_blame_nobody() -> None:
    items = [Witness() for _ in range(8)]
    quarantine: Quarantine[Witness] = Quarantine()
    quarantine.after_death(items, alone=False)
    assert dead(quarantine, items) == []
    killed, finished = 0, []
    while quarantine:
        group = quarantine.next_group()
        if killed < 5 and len(group) > 1:
            killed += 1
            assert dead(quarantine, group) == []
        else:
            finished += group
    assert len(finished) == 8


def test_a_death_beside_others_does_not_count_against_a_single_item() -> None:
    item = Witness()
    quarantine: Quarantine[Witness] = Quarantine()
    for _ in range(DEATHS_ALONE + 2):
        assert quarantine.after_death([item], alone=False).poison == []
        while quarantine:
            quarantine.next_group()


def test_a_group_whose_engine_was_ended_on_purpose_is_the_next_again() -> None:
    items = [Witness() for _ in range(4)]
    quarantine: Quarantine[Witness] = Quarantine()
    quarantine.after_death(items, alone=False)
    quarantine.after_death(items, alone=False)
    group = quarantine.next_group()
    quarantine.put_back(group)
    assert quarantine.next_group() == group == items[:2]


def test_items_that_nobody_wants_are_forgotten_and_leave_no_empty_group() -> None:
    items = [Witness() for _ in range(2)]
    quarantine: Quarantine[Witness] = Quarantine()
    quarantine.after_death(items, alone=False)
    quarantine.after_death(items, alone=False)
    quarantine.keep(lambda item: item is items[1])
    assert quarantine.next_group() == [items[1]]
    assert not quarantine


def test_who_comes_as_a_suspect_is_judged_like_one_that_met_two_deaths_here() -> None:
    came = [Witness(), Witness(deaths=3)]
    quarantine: Quarantine[Witness] = Quarantine()
    quarantine.admit(came)
    assert quarantine.next_group() == came
    assert dead(quarantine, came) == []
    assert [quarantine.next_group(), quarantine.next_group()] == [[came[0]], [came[1]]]
