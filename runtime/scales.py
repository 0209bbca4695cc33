"""Coarse to fine: which sizes a picture is painted at, one after the other.

Painted at one size, large pictures get small strokes alone: receptive fields see too little of them at once (Gatys et
al., "Controlling Perceptual Factors in Neural Style Transfer", 2017, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from impasto.errors import UsageError
from impasto.runtime.presets import Preset, Stage

Scales = Literal["auto"] | int | Sequence[float]
"""``auto``, a number of sizes of which each is half of the next, or their shares of the result's size, 1 the last."""

COARSEST = 768
"""Pixels of the long side up to which a picture is painted at one size, where its recipe does not say otherwise."""


def with_scales(preset: Preset, scales: Scales, long_side: int) -> Preset:
    """Return the preset with the stages that a result of ``long_side`` pixels gets.

    The number of iterations stays. Of those that a preset without stages has, every stage has half as many as the one
    before, which is half as large: so each costs about twice as much as the one before.

    ``auto`` keeps a preset as it is where its smallest stage has at most `COARSEST` pixels, and else goes on halving
    from there: before stages of its own come others, each with the iterations of the first. Solvers that have no number
    of iterations have one stage. Raises `UsageError` for such a solver where several were asked for, and for shares
    that do not ascend to 1.
    """
    if scales == "auto":
        return _automatic(preset, long_side)
    if isinstance(scales, str) or scales == 0:
        raise UsageError(f"scales is {scales!r}: {_FORMS}")
    shares = tuple(0.5**n for n in reversed(range(scales))) if isinstance(scales, int) else tuple(scales)
    _check(shares)
    if shares == (1.0,):
        return preset.with_stages(())
    if not preset.counts_iterations:
        raise UsageError(
            f"the solver of preset {preset.name!r} has no number of iterations, which several scales need: take lbfgs "
            "or adam, or 1 scale"
        )
    return preset.with_stages(_halving(shares))


def parse_scales(text: str) -> Scales:
    """Return what ``auto``, ``3`` or ``0.25,0.5,1`` stands for; raise `UsageError` for anything else."""
    if text == "auto":
        return "auto"
    try:
        return tuple(float(share) for share in text.split(",")) if {",", "."} & set(text) else int(text)
    except ValueError:
        raise UsageError(f"scales is {text!r}: {_FORMS}") from None


_FORMS = "give auto, a number of sizes from 1 to 16, or shares of the size such as 0.25,0.5,1"


def _check(shares: tuple[float, ...]) -> None:
    ascend = all(low < high for low, high in pairwise(shares))
    if not 1 <= len(shares) <= 16 or not ascend or not shares[0] > 0 or shares[-1] != 1:
        raise UsageError(f"scales are {', '.join(map(str, shares)) or 'none'}: give at most 16 that ascend to 1")


def _automatic(preset: Preset, long_side: int) -> Preset:
    if not preset.counts_iterations:
        return preset
    own = preset.stages or (Stage(1.0, 1),)
    halves: list[float] = []
    while long_side * (share := own[0].scale * 0.5 ** len(halves)) > COARSEST:
        halves.append(share / 2)
    if not halves:
        return preset
    coarser = sorted(halves)
    if preset.stages:
        return preset.with_stages((*(Stage(share, own[0].iterations) for share in coarser), *own))
    return preset.with_stages(_halving((*coarser, 1.0)))


def _halving(shares: Sequence[float]) -> tuple[Stage, ...]:
    return tuple(Stage(share, 2 ** (len(shares) - 1 - n)) for n, share in enumerate(shares))
