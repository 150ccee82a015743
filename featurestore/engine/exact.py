"""Error-free sums in double-double arithmetic: a value is `hi + lo` with |lo| at most half an ulp of hi.

TwoSum after Knuth, TwoProd after Dekker; see J. R. Shewchuk, "Adaptive Precision Floating-Point Arithmetic" (1997).
A plain float sum depends on the order of arrival in its last digits, and on all of them where terms cancel; with 106
bits the result is the same to far below 1e-9 in any order.
"""

from __future__ import annotations

from typing import Any

from featurestore.engine.array import Array

_SPLITTER = 134_217_729.0
"""2**27 + 1"""

Pair = tuple[Array, Array]


def two_sum(a: Array, b: Array) -> Pair:
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def add(a: Pair, b: Pair) -> Pair:
    high, error = two_sum(a[0], b[0])
    low, rest = two_sum(a[1], b[1])
    high, error = two_sum(high, error + low)
    return two_sum(high, error + rest)


def _split(a: Array) -> Pair:
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def two_prod(a: Array, b: Array) -> Pair:
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def scale(a: Pair, factor: Array) -> Pair:
    """`a` times a whole number below 2**53 held as float."""
    high, low = two_prod(a[0], factor)
    return two_sum(high, low + a[1] * factor)


def divide(a: Pair, divisor: Array) -> Array:
    """Nearest double of `a / divisor`, to about an ulp."""
    quotient = a[0] / divisor
    product, error = two_prod(quotient, divisor)
    return quotient + ((a[0] - product) - error + a[1]) / divisor


def total(xp: Any, high: Array, low: Array) -> Pair:
    """Sums pairs `[k, …]` along k, as accurately as repeated `add`; not finite where a power of two above the largest
    term is no double.

    Extraction after S. M. Rump, T. Ogita, S. Oishi, "Accurate Floating-Point Summation" (2008): adding and taking away
    a large power of two cuts each term to a common grid, on which sums are exact; what is cut off is 2**-53 of it.
    """
    _, exponent = xp.frexp(xp.abs(high).max(axis=0))
    grid = xp.ldexp(1.0, exponent + (2 + high.shape[0].bit_length()))
    coarse = (grid + high) - grid
    return two_sum(coarse.sum(axis=0), ((high - coarse) + low).sum(axis=0))
