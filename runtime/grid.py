"""A contact sheet: one pair of pictures painted over one or two settings, as figure 3 of Gatys et al. (2015) shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from impasto.errors import UnknownNameError, UsageError
from impasto.runtime.images import ByteArray, to_uint8
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.presets import Preset
from impasto.runtime.result import Result

_GAP = 8


def _numbers(field: str, kind: Callable[[str], float]) -> Callable[[JobSpec, str], JobSpec]:
    def change(spec: JobSpec, value: str) -> JobSpec:
        try:
            number = kind(value)
        except ValueError:
            raise UsageError(
                f"{field.replace('_', '-')} {value!r} is no number: give some, separated by commas"
            ) from None
        return JobSpec.from_json(spec.changed({field: number}).to_json())

    return change


def _names(field: str) -> Callable[[JobSpec, str], JobSpec]:
    return lambda spec, value: JobSpec.from_json(spec.changed({field: value}).to_json())


def _ratio(spec: JobSpec, value: str) -> JobSpec:
    """Make the largest content weight that many times the largest style weight."""
    try:
        ratio = float(value)
    except ValueError:
        raise UsageError(f"ratio {value!r} is no number: give some, separated by commas") from None
    preset = spec.recipe()[0]
    style = max(preset.objective.style.values(), default=0.0)
    return _settled(spec, preset.with_weights(content=ratio * style))


def _layers(spec: JobSpec, value: str) -> JobSpec:
    """Keep the first so many style layers, or those named, with the weights that they have or the largest."""
    preset = spec.recipe()[0]
    style = preset.objective.style
    if value.isdecimal():
        if not 1 <= int(value) <= len(style):
            raise UsageError(f"layers {value}: preset {preset.name!r} has {len(style)} style layers, give 1 to that")
        chosen = list(style)[: int(value)]
    else:
        chosen = value.split("+")
    largest = max(style.values(), default=1.0)
    kept = {tap: style.get(tap, largest) for tap in chosen}
    statistics = {tap: statistic for tap, statistic in preset.objective.statistics.items() if tap in kept}
    objective = replace(preset.objective, style=kept, statistics=statistics)
    return _settled(spec, replace(preset, objective=objective, adapt=False))


SETTINGS: Mapping[str, Callable[[JobSpec, str], JobSpec]] = {
    "ratio": _ratio,
    "layers": _layers,
    "style": _names("style"),
    "content-weight": _numbers("content_weight", float),
    "style-weight": _numbers("style_weight", float),
    "tv-weight": _numbers("tv_weight", float),
    "iterations": _numbers("iterations", int),
    "seed": _numbers("seed", int),
    "init": _names("init"),
    "preset": _names("preset"),
    "solver": _names("solver"),
    "pooling": _names("pooling"),
}
"""What a sheet can go over: each takes a job and a value, and returns the job with it."""


@dataclass(frozen=True)
class Axis:
    """One setting and its values, in the order in which they are shown."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Return the axis that ``NAME=VALUE,…`` says; raise `UnknownNameError` or `UsageError` if it says none."""
        name, equals, rest = text.partition("=")
        values = tuple(value.strip() for value in rest.split(","))
        if not equals or not all(values):
            raise UsageError(f"{text!r}: give a setting and its values, such as ratio=1e-5,1e-4,1e-3")
        if name not in SETTINGS:
            raise UnknownNameError("setting", name, SETTINGS)
        return cls(name, values)

    def labels(self) -> list[str]:
        """Return what each row or column is called."""
        return [f"{self.name} {Path(value).name if self.name == 'style' else value}" for value in self.values]


def cells(spec: JobSpec, rows: Axis | None, columns: Axis | None) -> list[list[JobSpec]]:
    """Return the job of each cell, row by row; an axis of None has one place.

    Settings that change the recipe itself come after those that choose it. Raises as the settings do, and `UsageError`
    for two axes of one setting.
    """
    if rows is not None and columns is not None and rows.name == columns.name:
        raise UsageError(f"rows and columns both go over {rows.name}: give two settings, or one")
    order = list(SETTINGS)[::-1]

    def job(row: str | None, column: str | None) -> JobSpec:
        given = [(axis.name, value) for axis, value in ((rows, row), (columns, column)) if axis and value is not None]
        found = spec
        for name, value in sorted(given, key=lambda each: order.index(each[0])):
            found = SETTINGS[name](found, value)
        return found

    return [
        [job(row, column) for column in (columns.values if columns else (None,))]
        for row in (rows.values if rows else (None,))
    ]


def sheet(results: Sequence[Sequence[Result]], rows: Axis | None, columns: Axis | None) -> ByteArray:
    """Return the paintings in a grid with labels, (H, W, 3) uint8 on white; cells are as large as the largest one."""
    width = max(result.size[0] for row in results for result in row)
    height = max(result.size[1] for row in results for result in row)
    pixels = max(10, min(28, width // 14))
    font = ImageFont.load_default(pixels)
    across = columns.labels() if columns else []
    down = rows.labels() if rows else []
    left = max((round(font.getlength(label)) + 2 * _GAP for label in down), default=0)
    line = pixels + _GAP // 2
    wrapped = [_wrapped(label, width, font) for label in across]
    top = max((line * len(lines) + _GAP for lines in wrapped), default=0)
    size = (left + len(results[0]) * (width + _GAP) + _GAP, top + len(results) * (height + _GAP) + _GAP)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, lines in enumerate(wrapped):
        middle = left + _GAP + number * (width + _GAP) + width / 2
        for at, text in enumerate(lines):
            draw.text((middle, _GAP + at * line), text, "black", font, anchor="ma")
    for number, label in enumerate(down):
        draw.text((left - _GAP, top + _GAP + number * (height + _GAP) + height / 2), label, "black", font, anchor="rm")
    for y, row in enumerate(results):
        for x, result in enumerate(row):
            place = (left + _GAP + x * (width + _GAP), top + _GAP + y * (height + _GAP))
            image.paste(Image.fromarray(to_uint8(result.image)), place)
    return np.asarray(image)


def _wrapped(label: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a label where it has spaces or plus signs, so that its lines are no wider than a cell, if they can be."""
    lines: list[str] = []
    for word in label.replace("+", "+ ").split():
        longer = f"{lines[-1]} {word}".replace("+ ", "+") if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _settled(spec: JobSpec, preset: Preset) -> JobSpec:
    """Return the job with that preset, into which its changes have gone."""
    return replace(
        spec,
        preset=preset,
        weights=spec.weights or preset.weights,
        pooling=None,
        solver=None,
        content_weight=None,
        style_weight=None,
        tv_weight=None,
        iterations=None,
    )
