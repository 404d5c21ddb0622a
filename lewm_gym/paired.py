"""The paired difference of two success rates on the same pairs, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lewm_gym.results import Result, wilson_interval


@dataclass(frozen=True)
class Difference:
    """The paired difference of two success rates.

    Attributes:
        both: Pairs that both solve.
        first_only: Pairs that only the first solves.
        second_only: Pairs that only the second solves.
        neither: Pairs that none solves.
        rate: Success of the second minus that of the first, in -1..1.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: McNemar's exact p-value, two-sided.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    rate: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Difference:
        """Returns the difference of two sequences of outcomes on the same pairs.

        The interval is Newcombe's tenth (Statistics in Medicine 17, 1998, 2635-2650): Wilson's intervals of the two
        rates, combined with the correlation of the outcomes. It is valid if few pairs differ, and near 0 and 1.

        Raises:
            ValueError: If there are no pairs, or not equally many.
        """
        if len(first) != len(second) or not first:
            raise ValueError(f"expected outcomes of the same pairs, got {len(first)} and {len(second)}")
        from scipy.stats import binomtest

        n = len(first)
        both = sum(a and b for a, b in zip(first, second, strict=True))
        first_only, second_only = sum(first) - both, sum(second) - both
        neither = n - both - first_only - second_only
        (rate_1, low_1, high_1), (rate_2, low_2, high_2) = (
            (sum(row) / n, *wilson_interval(sum(row), n, confidence)) for row in (first, second)
        )
        phi = _correlation(both, first_only, second_only, neither)
        below = _combined(rate_2 - low_2, high_1 - rate_1, phi)
        above = _combined(high_2 - rate_2, rate_1 - low_1, phi)
        rate = rate_2 - rate_1
        low, high = max(-1.0, rate - below), min(1.0, rate + above)
        differing = first_only + second_only
        p = float(binomtest(first_only, differing).pvalue) if differing else 1.0
        return cls(both, first_only, second_only, neither, rate, low, high, p)

    def __str__(self) -> str:
        rate, low, high = (100 * value for value in (self.rate, self.low, self.high))
        return f"{rate:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Returns the outcomes' correlation, with a continuity correction where it is positive."""
    n = both + first_only + second_only + neither
    product = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    excess: float = both * neither - first_only * second_only
    if excess > 0:
        excess = max(0.0, excess - n / 2)
    return excess / math.sqrt(product) if product else 0.0


def _combined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def compare(first: Result, second: Result) -> Difference:
    """Returns the paired difference of two results, on the pairs of both.

    Raises:
        ValueError: If they were not measured on the same pairs under the same rules.
    """
    for what, one, other in (
        ("task", first.task, second.task),
        ("protocol", first.protocol, second.protocol),
        ("pair set", first.pairs["hash"], second.pairs["hash"]),
        ("budget", first.budget_steps, second.budget_steps),
        ("pairs", [o.pair for o in first.outcomes], [o.pair for o in second.outcomes]),
    ):
        if one != other:
            told = "" if isinstance(one, list) else f" ({one} and {other})"
            raise ValueError(f"the results differ in their {what}{told}: measure both on the same pairs")
    return Difference.of([o.success for o in first.outcomes], [o.success for o in second.outcomes])
