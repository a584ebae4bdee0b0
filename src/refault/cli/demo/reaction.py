"""A simulation: two substances that react and diffuse on a plate (Gray and Scott's model)."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Field", "begin", "step"]

Field: TypeAlias = npt.NDArray[np.float64]

DIFFUSION_U: Final = 0.16
DIFFUSION_V: Final = 0.08
FEED: Final = 0.035
KILL: Final = 0.065


def begin(u: Field, v: Field) -> None:
    """Fill the plate with the first substance, and put some of the second into its middle."""
    u[:] = 1.0
    v[:] = 0.0
    middle, width = len(u) // 2, max(2, len(u) // 32)
    spot = slice(middle - width, middle + width)
    u[spot, spot] = 0.5
    v[spot, spot] = 0.25
    v[spot, spot] += 0.05 * np.random.default_rng(0).random((2 * width, 2 * width))


def step(u: Field, v: Field) -> None:
    """Go on by one step, in place; the edges stay as they are.

    The same numbers give the same result, to the last bit, in any memory.
    """
    inside = (slice(1, -1), slice(1, -1))
    reaction = u[inside] * v[inside] ** 2
    change_u = DIFFUSION_U * _laplacian(u) - reaction + FEED * (1.0 - u[inside])
    change_v = DIFFUSION_V * _laplacian(v) + reaction - (FEED + KILL) * v[inside]
    u[inside] += change_u
    v[inside] += change_v


def _laplacian(x: Field) -> Field:
    around: Field = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return around - 4.0 * x[1:-1, 1:-1]
