"""Paint the demo's content picture: an evening lake with mountains, a village, boats and a tree.

``python demo/paint_content.py`` rewrites the committed picture; every run gives the same one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from canvas import Canvas, save_picture
from landscape import HEIGHT, SHORE, WIDTH, lake, mountains, sky
from noise import Array, fbm, mix, pixels, smoothstep
from village import afloat, church, foliage, house, jetty, rowing_hull, rowing_inside, sailing_boat, shaded, tree

COMMITTED = Path(__file__).parents[1] / "impasto" / "demo" / "content.jpg"
PLASTERS = ((0.93, 0.86, 0.74), (0.86, 0.55, 0.40), (0.90, 0.72, 0.42), (0.76, 0.80, 0.82), (0.88, 0.66, 0.58))
TILES = ((0.66, 0.28, 0.19), (0.55, 0.24, 0.19), (0.40, 0.30, 0.33), (0.72, 0.36, 0.22))


def paint_village(canvas: Canvas) -> None:
    """Houses and trees along the right half of the far shore, in two rows, the church between them."""
    rng = np.random.RandomState(5)
    for x in (318, 352, 392, 434, 520, 566, 606, 636):
        foliage(canvas, (x + rng.uniform(-8, 8), 262), (15, 17), 1.7, (0.20, 0.32, 0.14), rng)
    for x in (385, 432, 540, 588):
        colours = PLASTERS[rng.randint(5)], TILES[rng.randint(4)]
        house(canvas, (x, 271), rng.uniform(20, 25), rng.uniform(20, 28), rng.uniform(15, 22), colours)
    church(canvas, (489, 276))
    for x, y in ((412, 272), (520, 274), (610, 274)):
        foliage(canvas, (x, y - 8), (9, 13), 1.6, (0.22, 0.34, 0.14), rng)
    quay = [(338.0, SHORE + 1), (352.0, SHORE - 5), (WIDTH, SHORE - 5), (WIDTH, SHORE + 1)]
    canvas.polygon(quay, shaded((0.55, 0.48, 0.42), 0.5))
    canvas.limb((352, SHORE - 5), (WIDTH, SHORE - 5), (1.5, 1.5), shaded((0.8, 0.72, 0.6), 1.0))
    for x, front, side, wall in (
        (378, 25, 20, 17),
        (421, 29, 22, 27),
        (466, 26, 20, 18),
        (545, 32, 27, 30),
        (604, 28, 25, 20),
    ):
        colours = PLASTERS[rng.randint(5)], TILES[rng.randint(4)]
        house(canvas, (x, SHORE - 5), front, side, wall, colours)
    foliage(canvas, (506, SHORE - 12), (9, 9), 1.6, (0.24, 0.36, 0.15), rng)
    foliage(canvas, (346, SHORE - 10), (11, 9), 1.6, (0.24, 0.36, 0.15), rng)


def paint_bank(canvas: Canvas, x: Array, y: Array) -> None:
    """The grassy bank in the lower left corner."""
    crest = 404 + 0.00125 * x**2 + 7 * fbm(x * 0.02, y * 0, 400, 4)
    inside = smoothstep(0, 1.5, y - crest)
    tone = 0.5 + 0.5 * fbm(x * 0.05, y * 0.09, 410, 5) + 0.25 * smoothstep(40, 0, y - crest) - 0.1
    colour = mix((0.10, 0.15, 0.07), (0.58, 0.52, 0.20), np.clip(tone, 0, 1))
    canvas.rgb = mix(canvas.rgb, colour, inside)
    rng = np.random.RandomState(8)
    for _ in range(2600):
        px = rng.uniform(-5, 265)
        py = 404 + 0.00125 * px**2 + 4 + rng.uniform(0, 1) ** 1.4 * 85
        size = 5 + 0.11 * (py - 400) + rng.uniform(0, 5)
        blade = shaded(np.array([0.40, 0.46, 0.15]) * rng.uniform(0.45, 1.35), rng.uniform(0.2, 1.0))
        canvas.limb((px, py), (px + rng.normal(1.5, 2.5), py - size), (1.5, 0.3), blade)
    for _ in range(130):
        px = rng.uniform(0, 240)
        py = 408 + 0.00125 * px**2 + rng.uniform(0, 70)
        petal = ((0.95, 0.90, 0.80), (0.95, 0.72, 0.20), (0.86, 0.26, 0.20))[rng.randint(3)]
        canvas.disc((px, py), rng.uniform(0.9, 1.9), petal)


def paint(scale: float) -> Array:
    """The picture at ``scale`` times 640 by 480: (rows, columns, 3), 0 to 1."""
    x, y = pixels(WIDTH, HEIGHT, scale)
    canvas = Canvas(mountains(x, y, sky(x, y)), np.ones_like(x), scale)
    paint_village(canvas)
    canvas.rgb = lake(x, y, canvas.rgb, scale)
    afloat(canvas, 306, lambda layer: sailing_boat(layer, (388, 306), 26, (0.98, 0.95, 0.90)))
    afloat(canvas, 332, lambda layer: sailing_boat(layer, (286, 332), 46, (0.98, 0.93, 0.84)))
    afloat(canvas, 392, lambda layer: jetty(layer, np.random.RandomState(3)), 0.45)
    afloat(canvas, 421, lambda layer: rowing_hull(layer, (400, 420), 104), 0.85)
    rowing_inside(canvas, (400, 420), 104)
    paint_bank(canvas, x, y)
    tree(canvas, (84, 434), 98, np.random.RandomState(21))
    return canvas.rgb


def main() -> None:
    """Parse the command line, paint and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=COMMITTED, help="JPEG to write (default: %(default)s)")
    parser.add_argument("--width", type=int, default=WIDTH, help="in pixels; the height follows (default: %(default)s)")
    options = parser.parse_args()
    height = round(options.width * HEIGHT / WIDTH)
    save_picture(paint(2 * options.width / WIDTH), options.out, (options.width, height), quality=88)


if __name__ == "__main__":
    main()
