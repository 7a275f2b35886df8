"""Finding the item that kills the engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from impetus_worker.batches.quarantine import DEATHS_ALONE, Quarantine


class Item:
    """Told apart by identity, as rows are."""


@given(st.integers(1, 64), st.data())
def test_one_culprit_is_found_and_nobody_else_is_blamed(count: int, data: st.DataObject) -> None:
    items = [Item() for _ in range(count)]
    culprit = items[data.draw(st.integers(0, count - 1))]
    quarantine: Quarantine[Item] = Quarantine()
    blamed = quarantine.after_death([items])
    finished: list[Item] = []
    deaths = 1
    while quarantine:
        group = quarantine.next_group()
        if culprit in group:
            deaths += 1
            blamed += quarantine.after_death([group])
        else:
            finished += group
    assert blamed == [culprit]
    assert {id(item) for item in finished} == {id(item) for item in items if item is not culprit}
    assert deaths <= DEATHS_ALONE + 1 + count.bit_length()


def test_random_kills_blame_nobody() -> None:
    items = [Item() for _ in range(8)]
    quarantine: Quarantine[Item] = Quarantine()
    assert quarantine.after_death([items[:4], items[4:]]) == []
    killed, finished = 0, []
    while quarantine:
        group = quarantine.next_group()
        if killed < 5 and len(group) > 1:
            killed += 1
            assert quarantine.after_death([group]) == []
        else:
            finished += group
    assert len(finished) == 8


def test_a_death_beside_others_does_not_count_against_a_single_item() -> None:
    one, other = Item(), Item()
    quarantine: Quarantine[Item] = Quarantine()
    for _ in range(DEATHS_ALONE + 2):
        assert quarantine.after_death([[one], [other]]) == []
        while quarantine:
            quarantine.next_group()


def test_an_item_that_ended_is_forgotten() -> None:
    item = Item()
    quarantine: Quarantine[Item] = Quarantine()
    for _ in range(DEATHS_ALONE - 1):
        assert quarantine.after_death([[item]]) == []
        assert quarantine.next_group() == [item]
    quarantine.cleared(item)
    assert quarantine.after_death([[item]]) == []
