"""The statistics of the measurements: correlation, intervals over episodes, and the paired t-test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """A paired t-test, two-sided: mean difference, statistic and p."""

    difference: float
    t: float
    p: float


class _Moments(NamedTuple):
    """Sums over the frames of each episode from which errors and correlations follow; each (episodes, k)."""

    frames: Array  # (episodes, 1)
    true: Array
    true_squared: Array
    predicted: Array
    predicted_squared: Array
    product: Array


def resampled(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Returns (RESAMPLES, n) draws with replacement from 0..n-1, the bootstrap's."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def mean_interval(values: Array) -> list[Interval]:
    """Returns the mean over rows of each column of (n, k) with its bootstrap 95 % interval over rows."""
    means = values.mean(axis=0)
    low, high = np.percentile(values[resampled(len(values))].mean(axis=1), (2.5, 97.5), axis=0)
    return [Interval(*map(float, row)) for row in zip(means, low, high, strict=True)]


def column_json(values: Array) -> dict[str, list[float]]:
    """Returns `mean_interval` as a record holds it: value, low and high, a number for each column."""
    return {key: [getattr(one, key) for one in mean_interval(values)] for key in ("value", "low", "high")}


def error_and_correlation(true: Sequence[Array], predicted: Sequence[Array]) -> tuple[Interval, float, Interval]:
    """Returns mean squared error, its standard deviation over episodes, and Pearson's r, with bootstrap intervals.

    Error and r are over all frames together, averaged over the columns; the intervals resample whole episodes, since
    the frames of one are alike. r is 0 where there is nothing to correlate (a column that does not vary).

    Args:
        true: One (T, k) per episode.
        predicted: Likewise.
    """
    moments = _moments(true, predicted)
    draws = resampled(len(true))
    whole = _Moments(*(m.sum(axis=0) for m in moments))
    drawn = _Moments(*(m[draws].sum(axis=1) for m in moments))
    errors, correlations = _error(drawn), _correlation(drawn)
    error = Interval(float(_error(whole)), *map(float, np.percentile(errors, (2.5, 97.5))))
    correlation = Interval(float(_correlation(whole)), *map(float, np.percentile(correlations, (2.5, 97.5))))
    spread = float(_error(moments).std(ddof=1)) if len(true) > 1 else 0.0
    return error, spread, correlation


def _moments(true: Sequence[Array], predicted: Sequence[Array]) -> _Moments:
    pairs = list(zip(true, predicted, strict=True))
    rows = [(np.array([len(t)]), t.sum(0), (t * t).sum(0), p.sum(0), (p * p).sum(0), (t * p).sum(0)) for t, p in pairs]
    return _Moments(*(np.stack(column).astype(np.float64) for column in zip(*rows, strict=True)))


def _error(m: _Moments) -> Array:
    squared: Array = ((m.true_squared - 2 * m.product + m.predicted_squared) / m.frames).mean(axis=-1)
    return squared


def _correlation(m: _Moments) -> Array:
    covariance = m.product - m.true * m.predicted / m.frames
    spread = (m.true_squared - m.true**2 / m.frames) * (m.predicted_squared - m.predicted**2 / m.frames)
    known = spread > 1e-12 * m.frames**2
    r: Array = np.where(known, covariance / np.sqrt(np.where(known, spread, 1.0)), 0.0).mean(axis=-1)
    return r


def paired_t_test(perturbed: Array, unperturbed: Array) -> PairedTest:
    """Returns the paired t-test of two arrays (n,), n at least 2.

    Raises:
        ValueError: For fewer than two pairs.
    """
    if len(perturbed) < 2:
        raise ValueError(f"a paired t-test needs at least 2 trajectories, got {len(perturbed)}")
    from scipy import stats

    found = stats.ttest_rel(perturbed, unperturbed)
    return PairedTest(float((perturbed - unperturbed).mean()), float(found.statistic), float(found.pvalue))
