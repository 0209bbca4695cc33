"""Presets: a recipe whole, as a value that goes to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from impasto.errors import MissingTapError, UnknownNameError, UsageError
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights
from impasto.runtime.images import Sizing
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, SOLVERS, Adam, TorchLBFGS

AnySolver = LBFGS | TorchLBFGS | LBFGSB | Adam | SGD
StyleFit = Literal["result", "rule"]
Init = Literal["content", "noise", "style"]

STYLE_FITS: tuple[StyleFit, ...] = ("result", "rule")
INITS: tuple[Init, ...] = ("content", "noise", "style")


_LONG_512 = Sizing("long", 512)


@dataclass(frozen=True)
class Stage:
    """One of several sizes painted one after the other: its share of the final size, and its iterations."""

    scale: float
    iterations: int

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1 or self.iterations < 1:
            raise UsageError(f"stage {self.scale}, {self.iterations}: give 0 < scale ≤ 1 and at least 1 iteration")


@dataclass(frozen=True)
class Preset:
    """A recipe: what is descended, by which solver, from where, at which size.

    - ``source``: where the recipe is published.
    - ``sizing``: the size of the result where the user gives none.
    - ``style_fit``: the style picture gets the result's exact size (``result``) or keeps its shape under the same
      sizing (``rule``).
    - ``init``: what the iterate starts as; ``noise`` is Gaussian with the standard deviation ``noise`` around zero, in
      the objective's pixel space, drawn from the job's seed.
    - ``stages``: several sizes, the last at scale 1; the painting of one, enlarged, starts the next. A stage at
      which a picture would be too small for a tap is left out.
    - ``evaluations``: the most evaluations of a stage, for solvers that have no end of their own.
    - ``adapt``: leave out taps that the weights do not reach; content moves to the deepest ReLU that they do.
    - ``weights``: the name of the weights to take where the user names none.
    - ``smallest_grid``: at each size, leave out taps whose grid of positions in the content or the style picture has a
      side below this, but never the finest; 0 leaves out none, and a picture too small for a tap is an error.
    - ``margin``: pixels of reflected content to paint around the picture, and to cut off at the end
      (`impasto.runtime.canvas`); in proportion less at smaller stages.

    Raises `UsageError` for settings that cannot work.
    """

    name: str
    source: str
    objective: Objective
    solver: AnySolver
    sizing: Sizing = _LONG_512
    style_fit: StyleFit = "rule"
    init: Init = "content"
    noise: float = 1.0
    stages: tuple[Stage, ...] = ()
    evaluations: int | None = None
    adapt: bool = False
    weights: str = "vgg19"
    smallest_grid: int = 0
    margin: int = 0

    def __post_init__(self) -> None:
        if self.style_fit not in STYLE_FITS:
            raise UnknownNameError("style_fit", self.style_fit, STYLE_FITS)
        if self.init not in INITS:
            raise UnknownNameError("init", self.init, INITS)
        if isinstance(self.solver, TorchLBFGS) and self.evaluations is None:
            raise UsageError("solver torch-lbfgs has no end of its own: give the preset a number of evaluations")
        if self.stages and self.stages[-1].scale != 1:
            raise UsageError(f"the last stage has scale {self.stages[-1].scale}, must be 1: the size of the result")
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"noise is {self.noise}: give a standard deviation, a finite number of 0 or more")
        if self.evaluations is not None and self.evaluations < 1:
            raise UsageError(f"evaluations is {self.evaluations}: give at least 1")
        if self.smallest_grid < 0:
            raise UsageError(f"smallest_grid is {self.smallest_grid}: give 0 or more positions")
        if self.margin < 0:
            raise UsageError(f"margin is {self.margin}: give 0 or more pixels")

    def for_weights(self, weights: Weights) -> Preset:
        """Return the preset with canonical tap names, adapted to what the weights reach where ``adapt`` allows it.

        Raises `MissingTapError` for a tap that the weights do not reach where it does not.
        """
        if not self.adapt:
            return replace(self, objective=self.objective.canonical(weights))
        from impasto.models.taps import resolve_tap

        reached = set(weights.taps)
        style = {tap: w for tap, w in self.objective.style.items() if resolve_tap(weights.backbone, tap) in reached}
        content: dict[str, float] = {}
        deepest = [tap for tap in weights.taps if tap.startswith("relu")][-1]
        for tap, weight in self.objective.content.items():
            place = resolve_tap(weights.backbone, tap)
            place = place if place in reached else deepest
            content[place] = content.get(place, 0.0) + weight
        if not style:
            raise MissingTapError(
                f"weights {weights.name!r} end at {weights.last}, before every style tap of preset {self.name!r}"
            )
        return replace(self, objective=replace(self.objective, content=content, style=style).canonical(weights))

    def objective_at(self, weights: Weights, *shapes: tuple[int, int]) -> Objective:
        """Return the objective for pictures of those sizes, (H, W), without the taps that ``smallest_grid`` leaves out.

        Tap names must be canonical already (`for_weights`).
        """
        net, taps = weights.backbone, self.objective.taps
        finest = min(taps, key=net.stride)
        sides = {tap: min(min(net.grid(tap, shape)) for shape in shapes) for tap in taps}
        small = [tap for tap in taps if sides[tap] < self.smallest_grid and net.stride(tap) > net.stride(finest)]
        return self.objective.without(small) if small else self.objective

    def total_iterations(self) -> int:
        """Return the iterations of all stages; for solvers without their own number, the evaluations or rounds."""
        if self.stages:
            return sum(stage.iterations for stage in self.stages)
        if isinstance(self.solver, LBFGS | Adam | SGD):
            return self.solver.iterations
        if self.evaluations is not None:
            return self.evaluations
        assert isinstance(self.solver, LBFGSB)
        return self.solver.rounds * self.solver.maxfun

    def with_iterations(self, iterations: int) -> Preset:
        """Return the preset with that many iterations, shared out among its stages as theirs are.

        Fewer iterations than stages leave out the first ones.
        Solvers without a number of iterations of their own get that many evaluations instead.
        """
        if iterations < 1:
            raise UsageError(f"iterations is {iterations}: give at least 1")
        if self.stages:
            return replace(self, stages=_shared_out(iterations, self.stages))
        if isinstance(self.solver, LBFGS | Adam | SGD):
            return replace(self, solver=replace(self.solver, iterations=iterations))
        if isinstance(self.solver, LBFGSB):
            rounds = -(-iterations // self.solver.maxfun)
            return replace(self, solver=replace(self.solver, rounds=rounds), evaluations=iterations)
        return replace(self, evaluations=iterations)

    @property
    def counts_iterations(self) -> bool:
        """Tell whether the solver has a number of iterations, which stages need."""
        return isinstance(self.solver, LBFGS | Adam | SGD)

    def with_stages(self, stages: tuple[Stage, ...]) -> Preset:
        """Return the preset with these stages, among which its iterations are shared out as theirs are.

        Fewer iterations than stages leave out the first ones.
        """
        return replace(self, stages=stages).with_iterations(self.total_iterations())

    def with_solver(self, name: str) -> Preset:
        """Return the preset with another solver, at settings that suit its pixel space, for as many iterations.

        - ``lbfgs``: a first trial step of one grey level; 20 pairs.
        - ``adam``: a learning rate of 10 in 0–255 spaces (jcjohnson/neural-style), in proportion in others.
        - ``torch-lbfgs``: torch's defaults without its absolute tolerances, which small losses fall below at once.
        - ``lbfgs-b``: SciPy's, in rounds of 20 evaluations as in the Keras book.
        - ``sgd``: only where the preset has it already, since its learning rate belongs to the scale of one loss.

        The preset's own solver is kept as it is. ``torch-lbfgs`` and ``lbfgs-b`` depend on the loss's scale, too;
        relative errors are so small that the first step of ``torch-lbfgs`` vanishes. Raises `UnknownNameError` for an
        unknown name, `UsageError` for a solver that cannot work with this preset: for these reasons, or because a
        preset of several stages needs one with a number of iterations.
        """
        if name not in SOLVERS:
            raise UnknownNameError("solver", name, SOLVERS)
        if name == solver_name(self.solver):
            return self
        iterations = self.total_iterations()
        lows, highs = pixel_space(self.objective.pixels).bounds()
        grey_level = max(high - low for low, high in zip(lows, highs, strict=True)) / 255
        solver: AnySolver
        match name:
            case "lbfgs":
                solver = LBFGS(iterations, first_step=grey_level)
            case "adam":
                solver = Adam(iterations, learning_rate=10 * grey_level)
            case "torch-lbfgs" if "relative" in (self.objective.content_norm, self.objective.style_norm):
                raise UsageError(
                    f"solver {name} does not get anywhere on the relative errors of preset {self.name!r}: take lbfgs"
                )
            case "torch-lbfgs":
                solver = TorchLBFGS(tolerance_grad=0.0, tolerance_change=0.0)
            case "lbfgs-b":
                solver = LBFGSB(rounds=-(-iterations // 20), maxfun=20)
            case _:
                raise UsageError(
                    f"solver {name} has no learning rate that suits preset {self.name!r}: take adam, or a preset "
                    "that is made for it (keras-io)"
                )
        if isinstance(solver, LBFGS | Adam):
            return replace(self, solver=solver, evaluations=None)
        if self.stages:
            raise UsageError(
                f"solver {name} has no number of iterations, which the stages of preset {self.name!r} need: "
                "take lbfgs or adam"
            )
        return replace(self, solver=solver, evaluations=iterations)

    def with_weights(self, content: float | None = None, style: float | None = None, tv: float | None = None) -> Preset:
        """Return the preset with other loss weights.

        ``content`` and ``style`` become the largest weight of their taps; the others keep their ratio to it.
        """
        objective = self.objective
        if content is not None:
            objective = replace(objective, content=_with_largest(objective.content, content, "content"))
        if style is not None:
            objective = replace(objective, style=_with_largest(objective.style, style, "style"))
        if tv is not None:
            objective = replace(objective, tv=tv)
        return replace(self, objective=objective)

    def to_json(self) -> dict[str, Any]:
        """Return the preset as JSON types; the solver carries its name."""
        solver = {"name": solver_name(self.solver), **asdict(self.solver)}
        return {**asdict(self), "solver": solver}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preset:
        """Return the preset that `to_json` wrote; raise `UsageError` for fields that are unknown or missing."""
        values = dict(value)
        try:
            solver = dict(values["solver"])
            kind = solver.pop("name")
            if kind not in SOLVERS:
                raise UnknownNameError("solver", str(kind), SOLVERS)
            if solver.get("bounds"):
                from impasto.runtime.solvers import Bounds

                solver["bounds"] = Bounds(**solver["bounds"])
            values["solver"] = SOLVERS[kind](**solver)
            values["objective"] = Objective(**values["objective"])
            values["sizing"] = Sizing(**values["sizing"])
            values["stages"] = tuple(Stage(**stage) for stage in values.get("stages", ()))
            return cls(**values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            known = ", ".join(field.name for field in fields(cls))
            raise UsageError(f"not a preset ({error}): its fields are {known}") from error


def _shared_out(iterations: int, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    total = sum(stage.iterations for stage in stages)
    given = done = 0
    shared = []
    for stage in stages:
        done += stage.iterations
        share = round(iterations * done / total) - given
        given += share
        if share:
            shared.append(replace(stage, iterations=share))
    if shared[-1].scale != 1:
        shared[-1] = replace(stages[-1], iterations=shared[-1].iterations)
    return tuple(shared)


def solver_name(solver: AnySolver) -> str:
    """Return the name under which presets and the command line know a solver."""
    return next(name for name, kind in SOLVERS.items() if type(solver) is kind)


def _with_largest(weights: Mapping[str, float], largest: float, kind: str) -> dict[str, float]:
    if not weights:
        raise UsageError(f"the preset has no {kind} term whose weight could be {largest}")
    top = max(weights.values())
    if top == 0:
        return dict.fromkeys(weights, largest)
    return {tap: largest * (weight / top) for tap, weight in weights.items()}
