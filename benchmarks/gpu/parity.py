"""Part `parity`: losses and gradients of every backend, plan and precision against PyTorch in float64.

Where the inputs of a ReLU or a pooling differ by rounding, a branch may flip, and one flip moves the gradient by 1e-5
to 3e-3 of its norm, in PyTorch's float32 as in ours: which of the two flips at a picture is chance. So float32 must be

- within 1e-5 in every loss, and 0.99999 in the gradient's cosine, at every picture;
- within 1e-5 in the gradient at one of a case's pictures at least, where the network is small enough that some meet no
  flip: a wrong rule is wrong at all of them;
- within 3e-3, or twice PyTorch's own largest error, everywhere.

Lower precisions are held against PyTorch's own error in the same precision, at most twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from benchmarks.gpu.findings import Check, Part, cosine, distance
from benchmarks.gpu.variants import EVERY, Open, Variant, engine_cache, open_variant
from benchmarks.pictures import square
from benchmarks.report import Table
from impasto.errors import UnavailableError
from impasto.export.objective import Objective
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.problem import FloatArray, Losses, Problem
from impasto.runtime.recipes import FILTERBANK, JOHNSON
from impasto.runtime.targets import encoded, measure_targets

_FLIP = 3e-3
_ROUNDOFF = {"tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True, eq=False)
class Case:
    """A network with pictures to evaluate and what float64 finds there.

    ``own`` are PyTorch's errors in the gradient by precision, a number a picture; ``small`` tells that pictures without
    a flip are to be expected.
    """

    name: str
    problems: Sequence[Problem]
    images: Sequence[FloatArray]
    exact: Sequence[Losses]
    own: dict[str, list[float]]
    small: bool


@dataclass(frozen=True)
class Error:
    """The errors of one variant and plan at the pictures of a case."""

    case: str
    variant: str
    precision: str
    plan: str
    losses: list[float]
    gradients: list[float]
    cosines: list[float]
    own: list[float]


def part(quick: bool) -> Part:
    """Compare on the first GPU."""
    return compared(quick, EVERY, open_variant)


def compared(quick: bool, variants: Iterable[Variant], open_: Open) -> Part:
    """Compare variants as ``open_`` opens them."""
    found = Part("Parity")
    with found.attempt("parity"), engine_cache() as cache:
        cases = make_cases(quick)
        errors: list[Error] = []
        for variant in variants:
            print(f"  {variant} …", file=sys.stderr, flush=True)
            with found.attempt(str(variant)):
                backend = open_(variant, cache)
                try:
                    for case in cases:
                        for plan in variant.plans:
                            with found.attempt(f"{variant} {plan}, {case.name}"):
                                error = evaluate(case, backend, variant, plan)
                                errors.append(error)
                                found.checks += judged(error, case)
                finally:
                    backend.close()
        found.body += [
            "Relative errors against PyTorch in float64, the least and the largest over the pictures; PyTorch's own "
            "are those of the same objective in the same precision, in float16 of our rescaled weights, with a loss "
            "scale.",
            table(errors),
        ]
        found.data["errors"] = [asdict(error) for error in errors]
    return found


def make_cases(quick: bool) -> list[Case]:
    """Make the cases; raise `UnavailableError` without PyTorch."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("PyTorch is not installed: pip install 'impasto[reference]'") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shallow = replace(JOHNSON.objective, content={"relu2_2": 5.0}, style={"relu1_1": 100.0, "relu2_1": 100.0})
    two_blocks = random_weights("vgg19", 1, last_conv="conv2_2")
    bank = filterbank_weights()
    small = (24, 31) if quick else (40, 53)
    cases = [
        _case("two blocks of VGG-19", two_blocks, shallow, [small] * 4, device, small=True),
        _case("filter bank", bank, FILTERBANK.objective_at(bank, small), [small] * 3, device, small=True),
    ]
    if not quick:
        vgg, sizes = random_weights("vgg19", 0), [(96, 96), (97, 128), (128, 111)]
        cases.insert(0, _case("VGG-19", vgg, JOHNSON.objective, sizes, device, small=False))
    return cases


def _case(
    name: str,
    weights: Weights,
    objective: Objective,
    sizes: Sequence[tuple[int, int]],
    device: str,
    *,
    small: bool,
) -> Case:
    import torch

    from benchmarks.gpu.johnson import own_losses
    from impasto.runtime.backends.torch import TorchBackend

    reference = TorchBackend(torch.float64, "cuda" if device == "cuda" else "cpu")
    objective = objective.canonical(weights)
    problems, images, exact = [], [], []
    own: dict[str, list[float]] = {}
    for number, size in enumerate(sizes):
        content, style, rgb = (_picture(3 * number + k, size) for k in range(3))
        targets = measure_targets(reference, weights, objective, content, style)
        problem, image = Problem(objective, weights, targets, size), encoded(objective, rgb)
        losses = reference.prepare(problem, "fused").evaluate(image)
        problems.append(problem)
        images.append(image)
        exact.append(losses)
        if objective.statistics:
            continue  # PyTorch's own is written for `johnson`'s form
        for precision in ("fp32", "tf32", "fp16", "bf16"):
            if precision != "tf32" or device == "cuda":  # which CPUs do not have
                found = own_losses(problem, image, precision, device)
                own.setdefault(precision, []).append(distance(found.gradient, losses.gradient))
    return Case(name, problems, images, exact, own, small)


def _picture(seed: int, size: tuple[int, int]) -> FloatArray:
    picture: FloatArray = square(f"noise-{seed}", max(size))[: size[0], : size[1]].copy()
    return picture


def evaluate(case: Case, backend: Backend, variant: Variant, plan: Plan) -> Error:
    """Evaluate all pictures of a case."""
    losses, gradients, cosines = [], [], []
    for problem, image, exact in zip(case.problems, case.images, case.exact, strict=True):
        found = backend.prepare(problem, plan).evaluate(image)
        losses.append(float(np.max([abs(found.terms[term] / value - 1) for term, value in exact.terms.items()])))
        gradients.append(distance(found.gradient, exact.gradient))
        cosines.append(cosine(found.gradient, exact.gradient))
    own = case.own.get(variant.precision, [])
    return Error(case.name, variant.backend, variant.precision, plan, losses, gradients, cosines, own)


def judged(error: Error, case: Case) -> list[Check]:
    """Return the checks that this file's first lines say."""
    title = f"{error.case}, {error.variant} {error.precision} {error.plan}"
    # NumPy's least and largest are NaN where one number is.
    gradient, twice = float(np.max(error.gradients)), 2 * max(error.own, default=0.0)
    if error.precision != "fp32":
        unit = _ROUNDOFF[error.precision]
        # Where there is no other implementation to be held against, the bound is that of a hundred roundings.
        bound = twice if error.own else 100 * unit
        return [
            Check(f"{title}: losses", float(np.max(error.losses)), 10 * unit, "of the loss"),
            Check(f"{title}: gradient", gradient, bound, "of its norm"),
        ]
    checks = [
        Check(f"{title}: losses", float(np.max(error.losses)), 1e-5, "of the loss"),
        Check(f"{title}: cosine of the gradient", 1 - float(np.min(error.cosines)), 1e-5, "short of 1"),
        Check(f"{title}: gradient", gradient, max(twice, _FLIP), "of its norm"),
    ]
    if case.small:
        least = float(np.min(error.gradients))
        checks.append(Check(f"{title}: gradient without a flip", least, 1e-5, "of its norm"))
    return checks


def table(errors: Iterable[Error]) -> Table:
    """Return a row for each variant, plan and case."""
    rows = tuple(
        (
            e.case,
            f"{e.variant} {e.plan}",
            e.precision,
            f"{np.max(e.losses):.1e}",
            f"{np.min(e.gradients):.1e}–{np.max(e.gradients):.1e}",
            f"{min(e.own):.1e}–{max(e.own):.1e}" if e.own else "",
            f"{np.min(e.cosines):.7f}",
        )
        for e in errors
    )
    return Table(("case", "backend, plan", "precision", "losses", "gradient", "PyTorch's own", "least cosine"), rows)
