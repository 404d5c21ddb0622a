"""The statistics of the measurements: correlation, intervals over episodes, and the paired t-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Score(NamedTuple):
    """How well a probe reads a quantity.

    Attributes:
        mse: Mean squared error, over all frames; of standardised targets 1 is what the mean achieves.
        mse_std: Standard deviation of the episodes' own errors.
        r: Pearson's correlation, averaged over the quantity's coordinates.
    """

    mse: Interval
    mse_std: float
    r: Interval


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


def interval_text(line: Mapping[str, Sequence[float]], k: int, digits: int = 3) -> str:
    """Returns column `k` of what `column_json` gave, in words."""
    return "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*(line[key][k] for key in ("value", "low", "high")), digits)


def error_and_correlation(true: Sequence[Array], predicted: Sequence[Array]) -> Score:
    """Returns mean squared error, its standard deviation over episodes, and Pearson's r, with bootstrap intervals.

    Error and r are over all frames together, averaged over the columns; the intervals resample whole episodes, since
    the frames of one are alike. r is 0 where there is nothing to correlate (a column that does not vary).

    Args:
        true: One (T, k) per episode.
        predicted: Likewise.
    """
    moments = np.stack([_moments(t, p) for t, p in zip(true, predicted, strict=True)])
    whole, drawn = moments.sum(axis=0), moments[resampled(len(true))].sum(axis=1)
    error, r = (
        Interval(float(of(whole)), *map(float, np.percentile(of(drawn), (2.5, 97.5)))) for of in (_error, _correlation)
    )
    return Score(error, float(_error(moments).std(ddof=1)) if len(true) > 1 else 0.0, r)


def _moments(t: Array, p: Array) -> Array:
    """Returns sums over frames (T, k) from which errors and correlations follow, (6, k)."""
    return np.stack([x.sum(axis=0) for x in (np.ones_like(t), t, t * t, p, p * p, t * p)])


def _error(moments: Array) -> Array:
    frames, _, true_squared, _, predicted_squared, product = np.moveaxis(moments, -2, 0)
    squared: Array = ((true_squared - 2 * product + predicted_squared) / frames).mean(axis=-1)
    return squared


def _correlation(moments: Array) -> Array:
    frames, true, true_squared, predicted, predicted_squared, product = np.moveaxis(moments, -2, 0)
    covariance = product - true * predicted / frames
    spread = (true_squared - true**2 / frames) * (predicted_squared - predicted**2 / frames)
    known = spread > 1e-12 * frames**2
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
