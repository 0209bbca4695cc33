"""How near paintings come to a style, and how far they go from the content, as real VGG-19 features see it.

``python -m benchmarks.quality --preset filterbank --content-weights 0.02,0.05,0.1 --curve curve.png`` does so for any
preset, weights and content weights.

The judge is VGG-19 with trained weights of blocks 1 to 3. Style is the mean over relu1_1, relu2_1 and relu3_1 of
Σ(G-A)²/ΣA² with G = F·Fᵀ/N, content is Σ(F-P)²/ΣP² at relu3_3; both of the picture as it would be saved, in 8 bits. A
preset that descends on these very features is its own judge; for all others the figures say something.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.convergence import REAL_BLOCKS
from benchmarks.machine import Machine
from benchmarks.pictures import SHARED
from benchmarks.report import Bound, Section, Table
from impasto.errors import ImpastoError, UnavailableError
from impasto.export.objective import Objective
from impasto.models.locate import find_weights
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.images import FloatArray, Sizing, resize, to_uint8
from impasto.runtime.painting import style_size
from impasto.runtime.presets import Preset
from impasto.runtime.read_image import read_image
from impasto.runtime.recipes import FILTERBANK, IMPASTO, find_preset
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.targets import measure_targets
from impasto.runtime.write_image import write_image

PAIRS = (
    ("tubingen", "starry_night"),
    ("astronaut", "the_scream"),
    ("tubingen", "shipwreck"),
    ("coffee", "demo style"),
)
SIZE = 384

_JUDGE = Objective(
    content={"relu3_3": 1.0},
    style=dict.fromkeys(("relu1_1", "relu2_1", "relu3_1"), 1.0),
    content_norm="relative",
    gram_norm="positions",
    style_norm="relative",
)
_MOST_STYLE, _MOST_CONTENT, _MOST_EVALUATIONS = 0.022, 0.67, 200


@dataclass(frozen=True)
class Painted:
    """A painting of one pair: its distances, and what it took; ``evaluations`` are those at full size."""

    content_name: str
    style_name: str
    style: float
    content: float
    evaluations: int
    seconds: float


def picture(name: str) -> FloatArray:
    """Return a picture, (H, W, 3) float32 RGB in 0–1: the demo's, one of `SHARED`, or one that scikit-image ships.

    Raises `UnavailableError` where it is not on this machine.
    """
    if name.startswith("demo "):
        demo = resources.files("impasto") / "demo" / f"{name.removeprefix('demo ')}.jpg"
        return read_image(demo.read_bytes()).rgb
    if (path := SHARED / "images" / f"{name}.jpg").exists():
        return read_image(path).rgb
    try:
        import skimage.data
    except ImportError:
        raise UnavailableError(f"picture {name!r} needs scikit-image: pip install 'impasto[bench]'") from None
    if not hasattr(skimage.data, name):
        raise UnavailableError(f"picture {name!r} is not beside the checkout, in ../shared/images")
    return read_image(getattr(skimage.data, name)()).rgb


def available_pairs() -> tuple[tuple[str, str], ...]:
    """Return those of `PAIRS` whose pictures are on this machine; the demo's own pair if none are."""
    found = []
    for pair in PAIRS:
        try:
            for name in pair:
                picture(name)
        except UnavailableError:
            continue
        found.append(pair)
    return tuple(found) or (("demo content", "demo style"),)


class Judge:
    """Measures distances by real VGG-19 features."""

    def __init__(self) -> None:
        """Raise `UnavailableError` where there are no real weights."""
        self._weights = find_weights(REAL_BLOCKS if REAL_BLOCKS.exists() else "vgg19")
        self._backend = OnnxRuntimeBackend()

    def distances(self, painting: FloatArray, content: FloatArray, style: FloatArray) -> tuple[float, float]:
        """Return the distances to the style and to the content, of pictures (H, W, 3) in 0–1 at their final sizes."""
        found, wanted = (
            measure_targets(self._backend, self._weights, _JUDGE, first, second)
            for first, second in ((painting, painting), (content, style))
        )
        style_distance = mean(_relative(found.style[tap], wanted.style[tap]) for tap in _JUDGE.style)
        return style_distance, _relative(found.content["relu3_3"], wanted.content["relu3_3"])


def paint(judge: Judge, stylizer: Stylizer, pair: tuple[str, str], size: int) -> tuple[Painted, FloatArray]:
    """Paint a pair with the stylizer's preset at its default settings; return its figures and the picture as saved."""
    content, style = (picture(name) for name in pair)
    painting = stylizer.begin(content, style, size=size)
    sizes = [step.size for step in painting]
    result = painting.result()
    evaluations = sizes.count(result.size)
    saved = to_uint8(result.image).astype(np.float32) / 255
    beside = style_size(stylizer.preset, read_image(style), result.size, Sizing("long", size))
    distances = judge.distances(saved, resize(content, result.size), resize(style, beside))
    return Painted(*pair, *distances, evaluations, result.seconds), saved


def measure(
    judge: Judge,
    preset: Preset,
    weights: str,
    pairs: Sequence[tuple[str, str]],
    size: int,
    folder: Path | None = None,
) -> list[Painted]:
    """Paint every pair; keep the pictures in a folder if one is given."""
    found = []
    with Stylizer(preset, weights=weights, backend="onnxruntime") as stylizer:
        for pair in pairs:
            painted, saved = paint(judge, stylizer, pair, size)
            found.append(painted)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                name = "-".join(part.replace(" ", "_") for part in (preset.name, *pair))
                write_image(folder / f"{name}-{size}.png", saved, overwrite=True)
    return found


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    try:
        judge = Judge()
    except UnavailableError as error:
        return Section(title="Quality", body=(f"Not measured: the judge is missing ({error}).",), bounds=(), data={})
    pairs, size = (available_pairs()[:1], 64) if quick else (available_pairs(), SIZE)
    runs = {"`filterbank`, no weights": (FILTERBANK, FILTERBANK.weights)}
    if REAL_BLOCKS.exists():
        runs["`impasto`, VGG-19 blocks 1–3"] = (IMPASTO, str(REAL_BLOCKS))
    results = {name: measure(judge, preset, weights, pairs, size) for name, (preset, weights) in runs.items()}
    bank = next(iter(results.values()))
    style, content = mean(p.style for p in bank), mean(p.content for p in bank)
    evaluations = max(p.evaluations for p in bank)
    what = f"Default preset without weights, {len(pairs)} pairs at {size} px"
    return Section(
        title="Quality",
        body=(
            "Distances as real VGG-19 features see them: style is the mean relative squared error of the Gram matrices "
            "at relu1_1, relu2_1 and relu3_1, content the relative squared error at relu3_3, of the picture in 8 bits. "
            f"Long side {size} px, each preset's own settings. A preset that descends on VGG-19 is judged by itself.",
            quality_table(results),
        ),
        bounds=(
            Bound(f"{what}: mean style distance", f"≤ {_MOST_STYLE}", f"{style:.4f}", style <= _MOST_STYLE),
            Bound(f"{what}: mean content distance", f"≤ {_MOST_CONTENT}", f"{content:.3f}", content <= _MOST_CONTENT),
            Bound(
                f"{what}: evaluations at full size",
                f"≤ {_MOST_EVALUATIONS}",
                f"{evaluations}",
                evaluations <= _MOST_EVALUATIONS,
            ),
        ),
        data={"size": size, "paintings": {name: [asdict(p) for p in found] for name, found in results.items()}},
    )


def quality_table(results: dict[str, list[Painted]]) -> Table:
    """Return a row for each painting, and the mean of each preset."""
    rows = []
    for name, found in results.items():
        for p in found:
            figures = (f"{p.style:.4f}", f"{p.content:.3f}", f"{p.evaluations}", f"{p.seconds:.0f}")
            rows.append((f"{name}: {p.content_name} × {p.style_name}", *figures))
        means = (f"**{mean(p.style for p in found):.4f}**", f"**{mean(p.content for p in found):.3f}**")
        rows.append((f"{name}: **mean**", *means, "", f"{mean(p.seconds for p in found):.0f}"))
    return Table(("", "style", "content", "evaluations at full size", "s"), tuple(rows))


def draw_curve(path: Path, curves: dict[str, list[tuple[float, float, float]]]) -> None:
    """Draw style against content distance; a curve's points are (content weight, style, content).

    Raises `UnavailableError` without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnavailableError("the curve needs matplotlib: pip install 'impasto[bench]'") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot([content for _, _, content in points], [style for _, style, _ in points], marker="o", label=name)
        for weight, style, content in points:
            axes.annotate(f"{weight:g}", (content, style), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xlabel("content distance (relu3_3)")
    axes.set_ylabel("style distance (mean of three Grams)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        judge, preset = Judge(), find_preset(options.preset)
        weights, pairs = options.weights or preset.weights, available_pairs()
        own = max(preset.objective.content.values())
        results: dict[str, list[Painted]] = {}
        points = []
        for weight in options.content_weights or [own]:
            name = f"`{preset.name}`, content weight {weight:g}"
            print(f"{name} …", file=sys.stderr, flush=True)
            recipe = replace(preset.with_weights(content=weight), name=f"{preset.name}-{weight:g}")
            found = results[name] = measure(judge, recipe, weights, pairs, options.size, options.pictures)
            points.append((weight, mean(p.style for p in found), mean(p.content for p in found)))
        print(quality_table(results).markdown())
        if options.curve:
            draw_curve(options.curve, {preset.name: points})
        if options.json:
            figures: dict[str, Any] = {name: [asdict(p) for p in found] for name, found in results.items()}
            options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except ImpastoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Judge paintings by VGG-19.")
    parser.add_argument("--preset", default=FILTERBANK.name, help="preset to paint with (default: %(default)s)")
    parser.add_argument("--weights", help="weights to paint with (default: the preset's)")
    parser.add_argument("--size", type=int, default=SIZE, help="long side in pixels (default: %(default)s)")
    parser.add_argument("--content-weights", type=_weights, metavar="W,W,…", help="instead of the preset's own")
    parser.add_argument("--curve", type=Path, metavar="FILE.png", help="draw style against content")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="keep the pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


def _weights(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _relative(found: FloatArray, wanted: FloatArray) -> float:
    wanted64 = wanted.astype(np.float64)
    return float(np.square(found - wanted64).sum() / np.square(wanted64).sum())


if __name__ == "__main__":
    sys.exit(main())
