"""Priors: the paper's numbers, the limits of the temperature, extreme sizes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo import priors
from hbo.errors import ConfigError

# The paper's two mixtures, METHOD: full sizes, then percentages at temperature 1 and 10.
MULTILINGUAL = {
    "English": (273_000, 59.53, 16.61),
    "Chinese": (102_000, 22.24, 15.05),
    "Russian": (49_000, 10.69, 13.99),
    "Spanish": (15_000, 3.27, 12.42),
    "Arabic": (12_000, 2.62, 12.15),
    "German": (6_000, 1.31, 11.34),
    "Hindi": (1_000, 0.22, 9.48),
    "Swahili": (578, 0.13, 8.97),
}
MULTITASK = {
    "General": (1_196_000, 53.06, 27.40),
    "Math": (393_000, 17.44, 24.51),
    "Finance": (256_000, 11.36, 23.48),
    "Medical": (409_000, 18.15, 24.61),
}
SIZES = st.lists(st.integers(1, 10**12), min_size=1, max_size=20)
TEMPERATURES = st.floats(1e-3, 1e6) | st.just(math.inf)


@pytest.mark.parametrize("mixture", [MULTILINGUAL, MULTITASK], ids=["multilingual", "multitask"])
def test_the_paper_s_percentages(mixture: dict[str, tuple[int, float, float]]) -> None:
    sizes, at_one, at_ten = np.array(list(mixture.values())).T
    assert 100 * priors.proportional(sizes) == pytest.approx(at_one, abs=0.0051)
    assert 100 * priors.temperature(sizes, 10) == pytest.approx(at_ten, abs=0.0051)
    assert priors.uniform(sizes) == pytest.approx(1 / len(sizes))


@given(SIZES, TEMPERATURES)
def test_a_prior_is_a_law_that_keeps_the_order_of_sizes(
    sizes: list[int], temperature: float
) -> None:
    prior = priors.temperature(sizes, temperature)
    assert prior.sum() == pytest.approx(1)
    assert (prior >= 0).all()
    assert (np.diff(prior[np.argsort(sizes, kind="stable")]) >= -1e-12).all()


@given(SIZES, st.floats(0.5, 100))
def test_temperature_is_equation_3(sizes: list[int], temperature: float) -> None:
    shares = np.array(sizes) / sum(sizes)
    powers = shares ** (1 / temperature)
    assert priors.temperature(sizes, temperature) == pytest.approx(powers / powers.sum())


@given(SIZES)
def test_one_is_proportional_and_infinity_uniform(sizes: list[int]) -> None:
    assert priors.temperature(sizes, 1) == pytest.approx(np.array(sizes) / sum(sizes))
    assert np.array_equal(priors.proportional(sizes), priors.temperature(sizes, 1))
    assert (priors.temperature(sizes, math.inf) == 1 / len(sizes)).all()
    assert np.array_equal(priors.uniform(sizes), priors.temperature(sizes, math.inf))


@given(SIZES, TEMPERATURES, st.floats(1e-6, 1e6))
def test_only_ratios_of_sizes_matter(sizes: list[int], temperature: float, unit: float) -> None:
    scaled = priors.temperature(np.array(sizes) * unit, temperature)
    assert scaled == pytest.approx(priors.temperature(sizes, temperature), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 0.01])
def test_a_temperature_near_zero_takes_the_largest(temperature: float) -> None:
    assert priors.temperature([1, 10**12, 10**11], temperature) == pytest.approx([0, 1, 0])


def test_a_subset_of_size_zero_is_never_drawn() -> None:
    for prior_temperature in (0.5, 1, 10, math.inf):
        assert priors.temperature([0, 3, 3], prior_temperature).tolist() == [0, 0.5, 0.5]


def test_given_weights_are_normalised() -> None:
    assert priors.given([3, 1, 0]).tolist() == [0.75, 0.25, 0]
    assert priors.given([1e308, 1e308]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("temperature", [0, -1, math.nan, -math.inf])
def test_a_bad_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="prior_temperature must be above 0"):
        priors.temperature([1, 2], temperature)


@pytest.mark.parametrize("rule", [priors.proportional, priors.uniform, priors.given])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, -1], "finite and at least 0, got -1"),
        ([1, math.nan], "finite and at least 0, got nan"),
        ([1, math.inf], "finite and at least 0, got inf"),
        ([0, 0], "all 0"),
        ([], "one number per subset"),
        ([[1, 2]], "one number per subset"),
    ],
)
def test_bad_sizes_and_weights_are_refused(rule: object, values: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(values)  # type: ignore[operator]
