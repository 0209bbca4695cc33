"""A painting told on one page: pictures, loss by term, settings and timings, in one HTML file without scripts."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from impasto.runtime.curves import curves
from impasto.runtime.files import check_writable, write_atomically
from impasto.runtime.images import FloatArray, resize
from impasto.runtime.loop import Step
from impasto.runtime.result import Result
from impasto.runtime.write_image import encode_image

LONG_SIDE = 1024
"""Pixels of a picture on the page, at most."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 0; } figcaption { color: GrayText; font-size: .875rem; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
img, svg { height: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9375rem; }
td, th { border-bottom: 1px solid #8884; padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
pre { background: #8882; border-radius: .3rem; overflow-x: auto; padding: .75rem; }
"""


@dataclass
class Report:
    """Collects what a report tells of a painting while it is painted, and writes it at the end.

    Raises `OutputError` where nothing can be written.
    """

    path: str | os.PathLike[str]
    overwrite: bool = False
    _iterations: list[float] = field(default_factory=list, init=False)
    _terms: dict[str, list[float]] = field(default_factory=dict, init=False)
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_writable(self.path, self.overwrite)

    def see(self, step: Step) -> None:
        """Take the losses of a step."""
        for name, value in [("total", step.loss), *step.terms.items()]:
            # A term may begin late: at smaller stages some have no grid.
            column = self._terms.setdefault(name, [math.nan] * len(self._iterations))
            column.append(value)
        self._iterations.append(step.evaluation)
        self._sizes.append(step.size)
        for column in self._terms.values():
            column.extend([math.nan] * (len(self._iterations) - len(column)))

    def write(self, result: Result, content: FloatArray, style: FloatArray) -> None:
        """Write the page; pictures are (H, W, 3) float32 RGB in 0–1. Raises as `write_atomically` does."""
        write_atomically(self.path, self.page(result, content, style).encode(), self.overwrite)

    def page(self, result: Result, content: FloatArray, style: FloatArray) -> str:
        """Return the page."""
        width, height = result.size
        title = f"Impasto: {result.preset}, {width}×{height}"
        shown = {"Painting": result.image, "Content": content, "Style": style}
        parts = [
            f"<h1>{html.escape(title)}</h1>",
            '<div class="pictures">',
            *(_figure(name, picture) for name, picture in shown.items()),
            "</div>",
            "<h2>Loss by term</h2>",
            curves(self._iterations, self._terms, self._stages(), "evaluation"),
            _table([("term", "at the best picture"), *_numbers({**result.loss, **result.terms})]),
            "<h2>Settings and timings</h2>",
            _table([("setting", "value"), *_settings(result)]),
            *([f"<h2>Notes</h2><ul>{''.join(_items(result.notes))}</ul>"] if result.notes else []),
            "<h2>The job</h2>",
            "<p>In a file, <code>impasto stylize --config</code> paints it again.</p>",
            f"<pre>{html.escape(json.dumps(result.job, indent=2, ensure_ascii=False))}</pre>",
        ]
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body>\n</html>\n"
        )

    def _stages(self) -> list[tuple[float, str]]:
        """Return where sizes begin, and how they are called."""
        found: list[tuple[float, str]] = []
        for at, (size, before) in enumerate(zip(self._sizes, [None, *self._sizes], strict=False)):
            if size != before:
                found.append((self._iterations[at], f"{size[0]}×{size[1]}"))
        return found


def _figure(name: str, picture: FloatArray) -> str:
    height, width = picture.shape[:2]
    share = min(1.0, LONG_SIDE / max(width, height))
    small = resize(np.clip(picture, 0, 1), (max(1, round(width * share)), max(1, round(height * share))))
    data = base64.b64encode(encode_image(small, "jpeg", quality=90)).decode()
    return (
        f'<figure><img alt="{name}" src="data:image/jpeg;base64,{data}" width="{small.shape[1]}" '
        f'height="{small.shape[0]}"/><figcaption>{name}, {width}×{height}</figcaption></figure>'
    )


def _settings(result: Result) -> Iterable[tuple[str, str]]:
    yield "preset", result.preset
    yield "weights", f"{result.weights['name']} ({result.weights['sha256'][:12]}…)"
    for kind, taps in result.taps.items():
        yield f"{kind} taps", ", ".join(taps)
    yield "backend", f"{result.backend} in {result.precision}, plan {result.plan}"
    yield "seed", str(result.seed)
    yield "iterations, evaluations", f"{result.trace[-1].iteration}, {len(result.trace)}"
    yield "ended", result.stop
    yield "time", f"{result.seconds:.1f} s, of which {result.trace[-1].seconds:.1f} s painting"
    yield "an evaluation", f"{1000 * result.trace[-1].seconds / len(result.trace):.1f} ms"
    if result.peak_memory_bytes is not None:
        yield "memory of the process", f"{result.peak_memory_bytes / 1e6:.0f} MB at most"
    yield "versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())


def _numbers(values: Mapping[str, float]) -> Iterable[tuple[str, str]]:
    return ((name, f"{value:.6g}") for name, value in values.items())


def _table(rows: Sequence[tuple[str, str]]) -> str:
    head, *rest = rows
    kind = ' class="number"' if head[0] == "term" else ""
    body = "".join(f"<tr><td>{html.escape(name)}</td><td{kind}>{html.escape(value)}</td></tr>" for name, value in rest)
    return f"<table><thead><tr><th>{head[0]}</th><th>{head[1]}</th></tr></thead><tbody>{body}</tbody></table>"


def _items(notes: Iterable[str]) -> Iterable[str]:
    return (f"<li>{html.escape(note)}</li>" for note in notes)
