"""Probes and statistics against known answers and independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.analysis.probe import probe
from benchmarks.analysis.statistics import error_and_correlation, mean_interval, paired_t_test

STEPS = 300  # of an MLP probe


def episodes(values: np.ndarray, length: int = 40) -> list[np.ndarray]:
    return list(values.reshape(-1, length, values.shape[1]))


def scores(latents: np.ndarray, targets: np.ndarray, n_fit: int = 40):
    x, y = episodes(latents), episodes(targets)
    found = probe(x[:n_fit], y[:n_fit], x[n_fit:], y[n_fit:], STEPS)
    assert found is not None
    return found


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_a_linear_map_is_read_off_perfectly() -> None:
    latents = noise(2000, 6)
    targets = 100.0 + latents @ noise(6, 2, seed=1)
    linear, mlp = scores(latents, targets)
    assert linear.r.value > 0.9999 and linear.mse.value < 1e-4
    assert mlp.r.value > 0.99


def test_noise_of_known_size_leaves_its_share_of_the_variance() -> None:
    latents = noise(2000, 6)
    signal = latents[:, :1]
    linear, _ = scores(latents, signal + 0.5 * noise(2000, 1, seed=1))
    assert linear.mse.value == pytest.approx(0.25 / 1.25, rel=0.15)
    assert linear.r.value == pytest.approx(math.sqrt(1 / 1.25), abs=0.03)
    assert linear.r.low < math.sqrt(1 / 1.25) < linear.r.high


def test_what_is_independent_of_the_latent_is_not_read_off_it() -> None:
    for score in scores(noise(2000, 6), noise(2000, 2, seed=1)):
        assert abs(score.r.value) < 0.15
        assert score.mse.value == pytest.approx(1.0, abs=0.25)
        assert score.r.low < 0.1 and score.r.high > -0.1


def test_a_nonlinear_map_is_read_off_by_the_mlp_alone() -> None:
    latents = noise(2000, 4)
    linear, mlp = scores(latents, latents[:, :1] * latents[:, 1:2])
    assert abs(linear.r.value) < 0.2
    assert mlp.r.value > 0.8 and mlp.mse.high < linear.mse.low


def test_a_quantity_that_does_not_vary_is_left_out() -> None:
    latents = noise(400, 4)
    x, y = episodes(latents), episodes(np.full((400, 2), 3.0))
    assert probe(x[:8], y[:8], x[8:], y[8:], 10) is None
    half = np.concatenate([latents[:, :1], np.full((400, 1), 3.0)], axis=1)
    linear, _ = scores(latents, half, n_fit=8)
    assert linear.r.value > 0.999  # of the coordinate that varies


def test_error_and_correlation_equal_a_plain_computation() -> None:
    true = [noise(n, 3, seed=n) for n in (5, 9, 30)]
    predicted = [0.7 * t + 0.3 * noise(*t.shape, seed=99) + 1.0 for t in true]
    error, spread, r = error_and_correlation(true, predicted)
    t, p = np.concatenate(true), np.concatenate(predicted)
    assert error.value == pytest.approx(((t - p) ** 2).mean())
    assert r.value == pytest.approx(np.mean([np.corrcoef(t[:, k], p[:, k])[0, 1] for k in range(3)]))
    assert spread == pytest.approx(
        np.std([((a - b) ** 2).mean() for a, b in zip(true, predicted, strict=True)], ddof=1)
    )
    assert error.low <= error.value <= error.high


def test_correlation_with_a_constant_is_zero() -> None:
    assert error_and_correlation([noise(20, 1)], [np.ones((20, 1))])[2].value == 0.0


def test_bootstrap_interval_agrees_with_normal_theory() -> None:
    values = noise(400, 2) * (1.0, 3.0)
    for column, interval in enumerate(mean_interval(values)):
        half = 1.96 * values[:, column].std(ddof=1) / 20
        assert interval.value == pytest.approx(values[:, column].mean())
        assert interval.high - interval.value == pytest.approx(half, rel=0.12)
        assert interval.value - interval.low == pytest.approx(half, rel=0.12)


def test_paired_t_test_equals_integration_of_students_density() -> None:
    a, b = noise(12) + 0.6, noise(12, seed=1)
    found = paired_t_test(a, b)
    n, d = len(a), a - b
    t = d.mean() / (d.std(ddof=1) / math.sqrt(n))
    x = np.linspace(-abs(t), abs(t), 200_001)
    scale = math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2)) / math.sqrt((n - 1) * math.pi)
    inside = np.trapezoid(scale * (1 + x**2 / (n - 1)) ** (-n / 2), x)
    assert found.difference == pytest.approx(d.mean())
    assert found.t == pytest.approx(t)
    assert found.p == pytest.approx(1 - inside, rel=1e-6)


def test_a_t_test_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        paired_t_test(np.ones(1), np.zeros(1))
