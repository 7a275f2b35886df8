"""Which lengths come is counted, and shapes are found for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impetus_backends.embedding.devices.packages.buckets import DOCSTRING_LENGTHS, suiting
from impetus_backends.embedding.devices.packages.fitting import LEAST_SAVED, fit
from impetus_backends.embedding.devices.packages.served import Served, Trial

from ...worker.conftest import fleet  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from pathlib import Path


def test_lengths_are_counted_in_steps_and_kept_for_the_next_process(tmp_path: Path) -> None:
    served = Served(tmp_path / "deep" / "a.json", 100)
    served.add([1, 32, 33, 64, 65, 96, 97, 100])
    assert served.counts == (2, 2, 2, 2)
    served.keep(call_tokens=12.5, trial=Trial(3.0, "1x32", "served"))
    again = Served(tmp_path / "deep" / "a.json", 100)
    assert (again.counts, again.call_tokens, again.trial) == ((2, 2, 2, 2), 12.5, Trial(3.0, "1x32", "served"))
    assert (served.fresh, again.fresh) == (8, 0)


def test_several_processes_count_together(tmp_path: Path) -> None:
    one, other = Served(tmp_path / "a.json", 64), Served(tmp_path / "a.json", 64)
    one.add([1] * 3)
    one.keep(call_tokens=7)
    other.add([60] * 5)
    other.keep()
    assert other.counts == (3, 5)
    assert other.call_tokens == 7
    one.keep()
    assert one.counts == (3, 5)


def test_what_is_kept_is_bounded_and_newer_texts_count_for_more(tmp_path: Path) -> None:
    served = Served(tmp_path / "a.json", 64)
    served.add([1] * 900_000)
    served.keep()
    served.add([60] * 200_000)
    served.keep()
    assert served.counts == (450_000, 100_000)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"counts": [1], "call_tokens": null, "trial": null}',
        b'{"counts": [-1, 2], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 1e400], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 99999999], "call_tokens": null, "trial": null}',
        b'{"counts": [1, "x"], "call_tokens": null, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": {}, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": NaN, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": 1e9, "trial": null}',
        b'{"counts": [1, 2], "call_tokens": null, "trial": 3}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_of_garbage_counts_as_nothing_and_is_written_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    served = Served(tmp_path / "a.json", 64)
    assert (served.counts, served.call_tokens, served.trial) == ((0, 0), None, None)
    served.add([5])
    served.keep()
    assert Served(tmp_path / "a.json", 64).counts == (1, 0)


def test_nothing_is_lost_where_it_cannot_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    served = Served(tmp_path / "in-the-way" / "a.json", 64)
    served.add([5, 40])
    with pytest.raises(OSError, match="in-the-way"):
        served.keep()
    assert served.counts == (1, 1)


def test_a_trial_of_the_future_was_made_by_a_wrong_clock(tmp_path: Path) -> None:
    served = Served(tmp_path / "a.json", 64)
    assert not served.tried_within(1e12)
    served.keep(trial=Trial(1e11, "1x32", "served"))
    assert not served.tried_within(1e12)
    served.keep(trial=Trial(1.0, "1x32", "served"))
    assert served.tried_within(1e12)
    assert not served.tried_within(60)


def test_texts_like_those_that_shapes_were_chosen_for_leave_them() -> None:
    for packed in (False, True):
        assert fit(512, DOCSTRING_LENGTHS, suiting(512, packed=packed), 64) is None


def test_other_texts_get_as_many_shapes_of_their_own_that_save_work() -> None:
    counts = [0] * 8 + [100, 500, 500, 100] + [0] * 4
    before = suiting(512, packed=True)
    found = fit(512, counts, before, 64)
    assert found is not None
    assert len(found.buckets) == len(before)
    assert 0.2 < found.saved < 1
    assert found.texts == 1200
    assert fit(512, counts, found.buckets, 64) is None


@settings(max_examples=25)
@given(st.lists(st.integers(0, 10_000), min_size=8, max_size=8).filter(any), st.floats(0, 1024), st.booleans())
def test_whatever_came_the_longest_text_still_fits_and_what_is_taken_saves_a_tenth(
    counts: list[int], call_tokens: float, packed: bool
) -> None:
    found = fit(256, counts, suiting(256, packed=packed), call_tokens)
    if found is not None:
        assert LEAST_SAVED <= found.saved < 1
        assert max(bucket.length for bucket in found.buckets if not bucket.packed) == 256
        assert any(bucket.packed for bucket in found.buckets) == packed
