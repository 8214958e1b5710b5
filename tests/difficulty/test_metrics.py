"""Difficulty metrics: a contract over the whole table, and each equation by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.difficulty.metrics import METRICS, NEEDS_ALONE, ResponseStatistics, difficulty_scores
from hbo.errors import ConfigError, DataError

LOSSES = st.floats(0, 1e4) | st.sampled_from([0.0, np.inf, np.nan])


@pytest.mark.parametrize("metric", METRICS)
@given(st.lists(st.tuples(LOSSES, LOSSES, st.integers(1, 5000)), max_size=20))
def test_every_metric_gives_one_score_per_example_and_leaves_its_input_alone(
    metric: str, examples: list[tuple[float, float, int]]
) -> None:
    table = np.array(examples, dtype=np.float64).reshape(-1, 3)
    statistics = ResponseStatistics(*(column.copy() for column in table.T))
    scores = difficulty_scores(metric, statistics)
    assert scores.shape == (len(examples),)
    assert scores.dtype == np.float64
    known = np.isfinite(table[:, :2]).all(axis=1)
    assert not np.isnan(scores[known]).any()
    assert (scores[known] >= 0).all()
    scores += 1
    for field, column in zip(("loss", "alone_loss", "response_tokens"), table.T, strict=True):
        assert np.array_equal(getattr(statistics, field), column, equal_nan=True)


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"length"}))
def test_a_higher_loss_is_harder(metric: str) -> None:
    statistics = ResponseStatistics(np.array([0.5, 1.0, 2.0]), np.full(3, 1.5), np.full(3, 4))
    assert (np.diff(difficulty_scores(metric, statistics)) > 0).all()


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("ifd", [0.5, 2.0]),
        ("ifd-loss", [0.5, 1.5]),
        ("perplexity", [2.0, 8.0]),
        ("loss", [np.log(2), np.log(8)]),
        ("length", [3.0, 5.0]),
    ],
)
def test_worked_values(metric: str, expected: list[float]) -> None:
    statistics = ResponseStatistics(np.log([2.0, 8.0]), np.log([4.0, 4.0]), np.array([3, 5]))
    assert difficulty_scores(metric, statistics) == pytest.approx(expected)


def test_the_two_published_forms_of_ifd_order_examples_differently() -> None:
    statistics = ResponseStatistics(np.array([4.0, 0.9]), np.array([5.0, 1.1]), np.ones(2))
    ratio_of_perplexities = difficulty_scores("ifd", statistics)
    ratio_of_losses = difficulty_scores("ifd-loss", statistics)
    assert ratio_of_perplexities[0] < ratio_of_perplexities[1]
    assert ratio_of_losses[0] < ratio_of_losses[1]
    assert ratio_of_losses.argmax() == 1
    other = ResponseStatistics(np.array([4.0, 0.5]), np.array([5.0, 0.7]), np.ones(2))
    assert difficulty_scores("ifd", other).argmax() == 1
    assert difficulty_scores("ifd-loss", other).argmax() == 0


@pytest.mark.parametrize(
    ("metric", "loss", "alone", "expected"),
    [
        ("ifd", 2000.0, 0.0, np.inf),
        ("ifd", np.inf, 1.0, np.inf),
        ("ifd", 1.0, np.inf, 0.0),
        ("ifd", np.inf, np.inf, np.nan),
        ("ifd", np.nan, 1.0, np.nan),
        ("ifd-loss", 1.0, 0.0, np.inf),
        ("ifd-loss", 0.0, 0.0, 1.0),
        ("ifd-loss", 0.0, 1.0, 0.0),
        ("ifd-loss", np.inf, np.inf, np.nan),
        ("perplexity", 2000.0, 0.0, np.inf),
        ("perplexity", np.nan, 0.0, np.nan),
        ("loss", np.inf, 0.0, np.inf),
    ],
)
def test_values_beyond_floating_point(
    metric: str, loss: float, alone: float, expected: float
) -> None:
    statistics = ResponseStatistics(np.array([loss]), np.array([alone]), np.ones(1))
    assert np.array_equal(difficulty_scores(metric, statistics), [expected], equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_only_those_that_say_so_need_the_response_alone(metric: str) -> None:
    statistics = ResponseStatistics(np.ones(2), None, np.ones(2))
    if metric in NEEDS_ALONE:
        with pytest.raises(ConfigError, match=f"{metric!r} needs the loss of each response"):
            difficulty_scores(metric, statistics)
    else:
        assert len(difficulty_scores(metric, statistics)) == len(statistics) == 2


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    statistics = ResponseStatistics(np.ones(1), None, np.ones(1))
    with pytest.raises(ConfigError, match=r"'perplexty' is unknown; .* did you mean 'perplexity'"):
        difficulty_scores("perplexty", statistics)


@pytest.mark.parametrize(
    ("loss", "alone", "tokens", "name"),
    [
        (np.ones(2), np.ones(3), np.ones(2), "alone_loss"),
        (np.ones(2), None, np.ones(1), "response_tokens"),
        (np.ones((2, 1)), None, np.ones(2), "loss"),
    ],
)
def test_statistics_must_fit_together(
    loss: np.ndarray, alone: np.ndarray | None, tokens: np.ndarray, name: str
) -> None:
    with pytest.raises(DataError, match=f"one {name} per example"):
        ResponseStatistics(loss, alone, tokens)
