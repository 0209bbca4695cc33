"""Part `paint`: whole small paintings by the `Stylizer`, which give the same bits every time, and how low they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping

from benchmarks.gpu.findings import Check, Part, differing
from benchmarks.gpu.variants import PAINTERS, Variant, engine_cache
from benchmarks.pictures import square
from benchmarks.report import Table
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.result import Result
from impasto.runtime.stylizer import Stylizer

_PRESET = "filterbank"
_MOST = {"fp32": 0.1, "tf32": 0.1, "fp16": 0.25, "bf16": 0.5}
"""Of the loss: descents part by rounding, and are soon at other points, in float32 at ones as low."""

Open = Callable[[Variant, Plan | None, EngineCache], Stylizer]
CPU = Variant("onnxruntime", "fp32", ("fused",))


def part(quick: bool) -> Part:
    """Paint on the first GPU."""
    with engine_cache() as cache:
        return painted(64 if quick else 192, 6 if quick else 90, PAINTERS, open_stylizer, cache)


def open_stylizer(variant: Variant, plan: Plan | None, cache: EngineCache) -> Stylizer:
    """Return a stylizer on a backend."""
    return Stylizer(_PRESET, backend=variant.backend, precision=variant.precision, plan=plan, cache=cache)


def painted(size: int, iterations: int, variants: Iterable[Variant], open_: Open, cache: EngineCache) -> Part:
    """Paint with each variant and plan: twice by one stylizer, and once by another."""
    found = Part("Paintings")
    content, style = square("noise-0", size), square("noise-1", size)

    def paint(stylizer: Stylizer) -> Result:
        return stylizer.stylize(content, style, size=size, iterations=iterations)

    with open_(CPU, None, cache) as stylizer:
        expected = paint(stylizer)
    rows = [("onnxruntime, the CPU", "", f"{expected.loss['total']:.4g}", f"{expected.seconds:.1f}")]
    for variant in variants:
        for plan in variant.plans:
            what = f"{variant} {plan}"
            print(f"  {what} …", file=sys.stderr, flush=True)
            with found.attempt(what):
                with open_(variant, plan, cache) as stylizer:
                    first, second = paint(stylizer), paint(stylizer)
                with open_(variant, plan, cache) as stylizer:
                    third = paint(stylizer)
                excess = first.loss["total"] / expected.loss["total"] - 1
                found.checks += [
                    Check(f"{what}: again", differing(second.image, first.image), 0, "bits"),
                    Check(f"{what}: by another stylizer", differing(third.image, first.image), 0, "bits"),
                    Check(f"{what}: loss above the CPU's", excess, _MOST[variant.precision], "of it"),
                    Check(f"{what}: not as asked for", _unasked(first, variant, plan), 0, ""),
                ]
                rows.append((what, f"{excess:+.1%}", f"{first.loss['total']:.4g}", f"{second.seconds:.1f}"))
    found.body += [
        f"`{_PRESET}`, {size}×{size} px, {iterations} iterations at most in all stages; the time is a warm stylizer's.",
        Table(("", "loss beside the CPU's", "loss", "s"), tuple(rows)),
    ]
    return found


def _unasked(result: Result, variant: Variant, plan: Plan) -> float:
    """Return 1 if something else painted than was asked to, 0 otherwise."""
    asked: Mapping[str, str] = {"backend": variant.backend, "precision": variant.precision, "plan": plan}
    return float(any(getattr(result, name) != value for name, value in asked.items()))
