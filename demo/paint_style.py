"""Paint the demo's style picture: whirling night air over a golden field, in thick oil strokes along a flow.

``python demo/paint_style.py`` rewrites the committed picture; every run gives the same one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from brushes import Painting
from canvas import save_picture
from noise import Array, fbm, mix, pixels, smoothstep

COMMITTED = Path(__file__).parents[1] / "impasto" / "demo" / "style.jpg"
WIDTH, HEIGHT = 640, 512
# Whirls of the night air: centre X, Y, radius, turning sense, how much light the core gives.
WHIRLS = ((418, 168, 150, 1.0, 1.0), (146, 122, 92, -1.0, 0.75), (596, 62, 60, -1.0, 0.55), (252, 280, 60, 1.0, 0.42))
NIGHT = (
    (0.00, (0.025, 0.04, 0.13)),
    (0.22, (0.06, 0.11, 0.34)),
    (0.42, (0.10, 0.27, 0.58)),
    (0.58, (0.18, 0.52, 0.64)),
    (0.70, (0.62, 0.74, 0.52)),
    (0.82, (0.95, 0.74, 0.20)),
    (1.00, (1.0, 0.93, 0.62)),
)
FIELD = (
    (0.00, (0.13, 0.06, 0.15)),
    (0.22, (0.38, 0.12, 0.13)),
    (0.45, (0.72, 0.30, 0.08)),
    (0.66, (0.90, 0.58, 0.10)),
    (0.85, (0.98, 0.80, 0.28)),
    (1.00, (1.0, 0.93, 0.62)),
)
ACCENTS = np.array([(0.86, 0.24, 0.12), (0.98, 0.60, 0.14), (0.12, 0.60, 0.62), (0.44, 0.20, 0.46)], np.float32)


def palette(stops: tuple[tuple[float, tuple[float, float, float]], ...], value: Array) -> Array:
    """Colours (..., 3) at ``value`` along a gradient of (position, colour) stops."""
    at = [position for position, _ in stops]
    return np.stack([np.interp(value, at, [c[k] for _, c in stops]) for k in range(3)], -1).astype(np.float32)


def horizon(x: Array) -> Array:
    """Height of the skyline, nominal pixels from the top."""
    return (372 + 20 * np.sin(x / 96 + 0.6) - 0.055 * (x - 320) + 8 * np.sin(x / 37)).astype(np.float32)


def flow(x: Array, y: Array) -> Array:
    """Unit direction of the strokes, (..., 2): air that drifts and whirls above, furrows that sweep below."""
    drift = 0.55 * np.sin(x / 118 + y / 150) + 0.9 * fbm(x / 170, y / 170, 500, 3)
    across, down = np.cos(drift), np.sin(drift)
    for cx, cy, radius, sense, _ in WHIRLS:
        dx, dy = x - cx, y - cy
        r = np.hypot(dx, dy) + 1e-3
        pull = 3.4 * np.exp(-((r / radius) ** 2) * 0.9) * smoothstep(0, 0.12, r / radius)
        across = across + pull * (-sense * dy - 0.22 * dx) / r
        down = down + pull * (sense * dx - 0.22 * dy) / r
    depth = y - horizon(x)
    furrow = np.arctan2(60 + depth, 2.2 * (x - 250)) + 0.35 * fbm(x / 90, y / 60, 520, 3)
    below = smoothstep(-4, 10, depth)
    furrow = np.where(np.cos(furrow) < 0, furrow + np.pi, furrow)
    across, down = across * (1 - below) + 3 * below * np.cos(furrow), down * (1 - below) + 3 * below * np.sin(furrow)
    return np.stack([across, down], -1) / np.maximum(np.hypot(across, down), 1e-6)[..., None]


def colour_at(x: Array, y: Array, shift: Array) -> Array:
    """The composition: paint colour (..., 3) at nominal positions, ``shift`` steps lighter along its palette."""
    value = 0.20 + 0.20 * y / HEIGHT + 0.20 * fbm(x / 120, y / 70, 540, 4)
    for cx, cy, radius, sense, glow in WHIRLS:
        dx, dy = x - cx, y - cy
        r = np.hypot(dx, dy) + 1e-3
        arms = np.cos(2 * np.arctan2(dy, dx) - sense * 5.2 * np.log(r / radius + 0.08))
        near = np.exp(-((r / radius) ** 2) * 1.1)
        value = value + glow * (0.34 * arms * near * smoothstep(0.05, 0.35, r / radius) + 0.16 * near)
        value = value + glow * 0.62 * np.exp(-((r / (0.24 * radius)) ** 2))
    depth = y - horizon(x)
    value = value + 0.42 * np.exp(-(((depth + 16) / 24) ** 2))  # light along the skyline
    night = palette(NIGHT, value + shift)
    fan = np.arctan2(x - 250, 60 + depth)
    rows = 0.5 + 0.5 * np.sin(26 * fan + 2.2 * fbm(x / 90, y / 60, 560, 3))
    ripe = 0.26 + 0.50 * rows + 0.30 * fbm(x / 110, y / 45, 570, 4) + 0.18 * np.exp(-np.abs(depth) / 22) - depth / 700
    field = palette(FIELD, ripe + shift)
    return mix(night, field, smoothstep(-2, 2, depth))


def trace(start: Array, length: float, points: int = 15) -> Array:
    """Paths (strokes, points, 2) that follow the flow both ways from ``start``, each ``length`` long."""
    step, half = length / (points - 1), points // 2
    there, back = [start], [start]
    for _ in range(half):
        there.append(there[-1] + step * flow(there[-1][:, 0], there[-1][:, 1]).astype(np.float32))
        back.append(back[-1] - step * flow(back[-1][:, 0], back[-1][:, 1]).astype(np.float32))
    return np.stack([*back[:0:-1], *there], 1)


def lay(painting: Painting, rng: np.random.RandomState, width: float, cover: float, load: float, keep: float) -> None:
    """One layer of strokes of about ``width`` all over, ``cover`` times the canvas in all.

    ``keep`` is the share of strokes laid on dark ground; where there is light all of them are.
    """
    count = int(cover * WIDTH * HEIGHT / (width * stroke_length(width)))
    start = (rng.uniform(-0.03, 1.03, (count, 2)) * (WIDTH, HEIGHT)).astype(np.float32)
    colour = colour_at(start[:, 0], start[:, 1], np.zeros(count, np.float32))
    busy = np.clip(1.6 * colour.max(1) - 0.5, 0, 1)
    brush(painting, rng, start[rng.uniform(0, 1, count) < keep + (1 - keep) * busy], width, load)


def light_cores(painting: Painting, rng: np.random.RandomState) -> None:
    """Thick short strokes round the heart of every whirl, which the long ones only circle."""
    for cx, cy, radius, _, _ in WHIRLS:
        start = rng.normal((cx, cy), 0.14 * radius, (44, 2)).astype(np.float32)
        brush(painting, rng, start, 0.045 * radius + 2.5, 0.30)


def stroke_length(width: float) -> float:
    """Length of the strokes made with a brush of ``width``: short ones are relatively longer."""
    return 5.2 * width + 14


def brush(painting: Painting, rng: np.random.RandomState, start: Array, width: float, load: float) -> None:
    """Strokes through ``start`` (strokes, 2) along the flow, in the composition's colours there, each a little off."""
    count = len(start)
    paths = trace(start, stroke_length(width))
    shift = rng.normal(0, 0.055, count).astype(np.float32)
    body = colour_at(start[:, 0], start[:, 1], shift)
    streak = colour_at(start[:, 0], start[:, 1], shift + rng.normal(0.05, 0.10, count).astype(np.float32))
    accent = rng.uniform(0, 1, count) < 0.035
    body[accent] = mix(body[accent], ACCENTS[rng.randint(0, len(ACCENTS), accent.sum())], 0.75)
    tint = rng.normal(0, 0.022, (count, 2, 3)).astype(np.float32)
    colours = np.clip(np.stack([body, streak], 1) + tint, 0.01, 1)
    widths = width * rng.uniform(0.7, 1.3, count)
    dryness, pattern = rng.uniform(0, 0.85, count), rng.randint(0, len(painting.patterns), count)
    for k in range(count):
        painting.stroke(paths[k], widths[k], colours[k], load, dryness[k], pattern[k])


def paint(scale: float) -> Array:
    """The picture at ``scale`` times 640 by 512: (rows, columns, 3), 0 to 1."""
    rng = np.random.RandomState(11)
    x, y = pixels(WIDTH, HEIGHT, scale)
    painting = Painting(0.7 * colour_at(x, y, np.zeros_like(x)), scale, seed=12)
    lay(painting, rng, width=24, cover=3.0, load=0.16, keep=1.0)
    lay(painting, rng, width=14, cover=1.6, load=0.20, keep=0.8)
    lay(painting, rng, width=9, cover=1.2, load=0.24, keep=0.45)
    lay(painting, rng, width=5.5, cover=0.7, load=0.26, keep=0.12)
    light_cores(painting, rng)
    return painting.lit(strength=2.0)


def main() -> None:
    """Parse the command line, paint and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=COMMITTED, help="JPEG to write (default: %(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="in pixels; the height follows (default: %(default)s)")
    options = parser.parse_args()
    height = round(options.width * HEIGHT / WIDTH)
    save_picture(paint(2 * options.width / WIDTH), options.out, (options.width, height), quality=75)


if __name__ == "__main__":
    main()
