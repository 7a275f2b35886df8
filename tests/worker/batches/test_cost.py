"""Learning what a batch costs, and whether waiting for a fuller one pays."""

from __future__ import annotations

import pytest

from impetus_worker.batches.planning.cost import CostModel


def test_the_fixed_cost_is_found_among_batches_of_many_sizes() -> None:
    cost = CostModel()
    for tokens in (10, 500, 1000, 40, 300) * 10:
        cost.observe(tokens, 0.004 + 0.00002 * tokens)
    assert cost.fixed_s == pytest.approx(0.004)


def test_batches_of_one_size_count_as_fixed_cost() -> None:
    cost = CostModel()
    for _ in range(20):
        cost.observe(100, 0.006)
    assert cost.fixed_s == pytest.approx(0.006)


def test_waiting_is_tried_before_anything_is_known() -> None:
    assert CostModel().waiting_pays(0.0)


def test_waiting_pays_where_the_fixed_cost_of_the_arrivals_would_fill_the_device() -> None:
    cost = CostModel()
    for tokens in (10, 500, 1000) * 10:
        cost.observe(tokens, 0.01 + 0.00002 * tokens)
    cost.arrived(1, now=10.0)
    assert not cost.waiting_pays(10.0)
    cost.arrived(100, now=10.1)
    assert cost.waiting_pays(10.1)
    assert not cost.waiting_pays(12.0)


def test_waiting_never_pays_where_every_token_costs_the_same() -> None:
    cost = CostModel()
    for tokens in (10, 500, 1000) * 10:
        cost.observe(tokens, 0.0001 * tokens)
    cost.arrived(1000, now=1.0)
    assert not cost.waiting_pays(1.0)


def test_a_batch_is_expected_to_cost_what_others_did_and_a_larger_one_in_proportion() -> None:
    cost = CostModel()
    assert cost.expected_s(100) is None
    for _ in range(20):
        cost.observe(100, 0.5)
    assert cost.expected_s(10) == pytest.approx(0.5)
    assert cost.expected_s(100) == pytest.approx(0.5)
    assert cost.expected_s(400) == pytest.approx(2.0)
