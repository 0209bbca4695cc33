"""What people and plants put into the content picture: houses, a church, boats, a jetty, trees and grass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from canvas import Canvas, Colour, Point
from landscape import HEIGHT, WIDTH
from noise import Array, gradient_noise, pixels

RandomState = np.random.RandomState
BARK = (0.13, 0.095, 0.085)
WARM = (1.0, 0.82, 0.36)  # lamplight in a window


def shaded(colour: Colour, light: float) -> list[float]:
    """A colour in sun (``light`` 1) or in the blue shade of the sky (0)."""
    sun, sky = np.array([1.12, 0.98, 0.80]), np.array([0.42, 0.46, 0.62])
    return list(np.clip(np.asarray(colour) * (sky + (sun - sky) * light), 0, 1))


def house(canvas: Canvas, base: Point, front: float, side: float, wall: float, colours: tuple[Colour, Colour]) -> None:
    """A gabled house: sunlit side of length ``side`` to the left, shaded gable of width ``front`` to the right.

    ``base`` is the foot of the corner between them; the walls are ``wall`` high.
    """
    (x, y), (plaster, tiles) = base, colours
    rise, eave = 0.62 * front, 0.06 * front
    ridge = (x + front / 2, y - wall - rise)
    far = (ridge[0] - side, ridge[1])
    canvas.polygon([(x - side, y), (x - side, y - wall), (x, y - wall), (x, y)], shaded(plaster, 1.0))
    canvas.polygon([(x, y), (x, y - wall), ridge, (x + front, y - wall), (x + front, y)], shaded(plaster, 0.22))
    canvas.polygon([(x - side - eave, y - wall + eave), far, ridge, (x - eave, y - wall + eave)], shaded(tiles, 0.9))
    for k in range(1, 5):  # courses of tiles
        t = k / 5
        left = (far[0] + (x - side - eave - far[0]) * t, far[1] + (rise + eave) * t)
        right = (ridge[0] + (x - eave - ridge[0]) * t, left[1])
        canvas.limb(left, right, (0.5, 0.5), shaded(tiles, 0.25), 0.6)
    canvas.limb(ridge, (x + front + eave, y - wall + eave), (1.6, 1.6), shaded(tiles, 0.1))
    canvas.limb(ridge, (x - eave, y - wall + eave), (1.4, 1.4), shaded(tiles, 0.6))
    chimney = far[0] + 0.35 * side
    canvas.polygon(
        [(chimney, far[1] + 3), (chimney, far[1] - 5), (chimney + 3.5, far[1] - 5), (chimney + 3.5, far[1] + 3)],
        shaded((0.62, 0.40, 0.33), 0.6),
    )
    pane, storeys = 0.15 * front, max(1, round(wall / 15))
    for storey in range(storeys):
        middle = y - wall * (storey + 0.55) / storeys
        for across in (0.28, 0.72):
            window(canvas, (x + front * across, middle), pane, lit=True)
        for k in range(max(1, int(side / 9))):
            window(canvas, (x - side + (k + 0.5) * side / max(1, int(side / 9)), middle), 0.85 * pane, lit=False)
    window(canvas, (ridge[0], y - wall - 0.22 * rise), 0.8 * pane, lit=True)


def window(canvas: Canvas, centre: Point, width: float, lit: bool) -> None:
    """A window with its frame: lamplit, or the dark glass of a sunlit wall."""
    (x, y), half, tall = centre, width / 2, 0.72 * width
    frame = [(x - half - 0.6, y - tall - 0.6), (x + half + 0.6, y - tall - 0.6)]
    canvas.polygon([*frame, (x + half + 0.6, y + tall + 0.6), (x - half - 0.6, y + tall + 0.6)], (0.28, 0.22, 0.22))
    pane = [(x - half, y - tall), (x + half, y - tall), (x + half, y + tall), (x - half, y + tall)]
    canvas.polygon(pane, WARM if lit else (0.20, 0.24, 0.33))


def church(canvas: Canvas, base: Point) -> None:
    """A white church: nave to the left, tower with a tall spire at ``base``."""
    x, y = base
    house(canvas, (x - 4, y), 26, 34, 22, ((0.95, 0.92, 0.88), (0.42, 0.30, 0.34)))
    canvas.polygon([(x, y), (x, y - 52), (x + 9, y - 52), (x + 9, y)], shaded((0.97, 0.94, 0.90), 1.0))
    canvas.polygon([(x + 9, y), (x + 9, y - 52), (x + 18, y - 52), (x + 18, y)], shaded((0.97, 0.94, 0.90), 0.2))
    canvas.polygon([(x - 2, y - 51), (x + 9, y - 98), (x + 9, y - 51)], shaded((0.30, 0.46, 0.44), 0.95))
    canvas.polygon([(x + 9, y - 51), (x + 9, y - 98), (x + 20, y - 51)], shaded((0.30, 0.46, 0.44), 0.25))
    canvas.limb((x + 9, y - 97), (x + 9, y - 107), (0.9, 0.9), (0.9, 0.75, 0.35))
    canvas.limb((x + 6.6, y - 103.5), (x + 11.4, y - 103.5), (0.9, 0.9), (0.9, 0.75, 0.35))
    window(canvas, (x + 13.5, y - 43), 3.4, lit=True)
    window(canvas, (x + 4.5, y - 43), 3.0, lit=False)
    canvas.disc((x + 13.5, y - 29), 2.6, (0.95, 0.88, 0.68))


def foliage(canvas: Canvas, centre: Point, radii: Point, leaf: float, colour: Colour, rng: RandomState) -> None:
    """A crown of leaf dabs, from the shaded depth (lower right) to the sunlit rim (upper left)."""
    area = radii[0] * radii[1] / leaf**2
    count = int(4.5 * area)
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.minimum(np.abs(rng.normal(0, 0.62, count)), 1.4)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    light = np.clip(0.42 - 0.42 * px - 0.50 * py + rng.normal(0, 0.16, count), 0, 1)
    for k in np.argsort(light + rng.normal(0, 0.12, count)):
        tint = np.asarray(colour) * (0.30 + 0.95 * light[k]) + np.array([0.18, 0.10, 0.0]) * light[k] ** 2
        spot = (centre[0] + px[k] * radii[0], centre[1] + py[k] * radii[1])
        canvas.disc(spot, leaf * rng.uniform(0.6, 1.2), shaded(tint, 0.25 + 0.75 * light[k]), rng.uniform(0.5, 0.9))


def tree(canvas: Canvas, root: Point, length: float, rng: RandomState) -> None:
    """A broad foreground tree: limbs that fork recursively, and crowns of leaves at their ends."""
    tips: list[Point] = []

    def grow(start: Point, heading: float, reach: float, width: float) -> None:
        bend = rng.normal(0, 0.10) - 0.06 * heading
        for k in range(5):
            end = (start[0] + reach / 5 * np.sin(heading), start[1] - reach / 5 * np.cos(heading))
            flare = 1 + 0.55 * (1 - k / 4) ** 3
            widths = (width * flare * (1 - 0.06 * k), width * (1 + 0.55 * (1 - (k + 1) / 4) ** 3) * (0.94 - 0.06 * k))
            canvas.limb(start, end, (widths[0], widths[1] if k < 4 else 0.7 * width), BARK)
            canvas.disc(end, 0.35 * width, BARK)
            for strip, tone in ((0.22, 0.45), (0.33, 1.0)):  # the sunlit left side
                canvas.limb(
                    (start[0] - strip * widths[0], start[1]), (end[0] - strip * 0.94 * width, end[1]),
                    (0.20 * width, 0.18 * width), shaded((0.50, 0.36, 0.25), tone), 0.75,
                )  # fmt: skip
            start, heading = end, heading + bend
        if reach < 0.62 * length:
            tips.append(start)
        if reach < 0.26 * length:
            return
        for turn in (-0.46, 0.40) if rng.uniform() < 0.5 else (-0.58, -0.03, 0.52):
            grow(start, 0.9 * heading + turn + rng.normal(0, 0.12), reach * rng.uniform(0.64, 0.78), 0.62 * width)

    grow(root, -0.06, length, 0.20 * length)
    for tip in sorted(tips, key=lambda p: p[1] - p[0] + rng.normal(0, 8)):
        size = length * rng.uniform(0.15, 0.26)
        foliage(canvas, tip, (size * 1.3, size * 0.85), 2.3, (0.25, 0.35, 0.12), rng)


def sailing_boat(canvas: Canvas, base: Point, size: float, sail: Colour) -> None:
    """A small yacht, ``size`` long, its waterline at ``base``."""
    x, y = base
    s = size / 40
    canvas.limb((x, y - 3 * s), (x, y - 62 * s), (1.6 * s, 1.0 * s), (0.30, 0.20, 0.16))
    main = [(x + 1.5 * s, y - 58 * s), (x + 4 * s, y - 30 * s), (x + 20 * s, y - 10 * s), (x + 1.5 * s, y - 9 * s)]
    canvas.polygon(main, shaded(sail, 0.55))
    canvas.polygon([main[0], (x + 1.5 * s, y - 9 * s), (x + 7 * s, y - 9.4 * s)], shaded(sail, 1.0), 0.8)
    canvas.polygon([(x - 1 * s, y - 54 * s), (x - 17 * s, y - 8 * s), (x - 1 * s, y - 10 * s)], shaded(sail, 1.0))
    hull = [(x - 21 * s, y - 6 * s), (x + 20 * s, y - 6 * s), (x + 16 * s, y + 1 * s), (x - 14 * s, y + 1 * s)]
    canvas.polygon(hull, shaded((0.62, 0.16, 0.12), 0.7))
    canvas.limb((x - 21 * s, y - 5.6 * s), (x + 20 * s, y - 5.6 * s), (1.6 * s, 1.6 * s), (0.96, 0.90, 0.78))


def rowing_hull(canvas: Canvas, base: Point, size: float) -> None:
    """The side of an open boat, ``size`` long, its waterline at ``base``: the part that the water reflects."""
    outline = [(-50, -20), (-38, -1), (-8, 3), (30, 1), (48, -19), (0, -9)]
    corners = [(base[0] + a * size / 100, base[1] + b * size / 100) for a, b in outline]
    canvas.polygon(corners, shaded((0.24, 0.58, 0.66), 0.9))


def rowing_inside(canvas: Canvas, base: Point, size: float) -> None:
    """The rim, the thwarts and an oar of the boat whose side is ``rowing_hull``, seen from above."""
    x, y = base
    s = size / 100
    rim = [(-50, -20), (-34, -23), (0, -24), (30, -22), (48, -19), (32, -12), (0, -9), (-30, -12)]
    canvas.polygon([(x + a * s, y + b * s) for a, b in rim], (0.92, 0.84, 0.66))
    canvas.polygon([(x + a * s * 0.91, y + (b + 16.2) * s * 0.78 - 16.2 * s) for a, b in rim], (0.25, 0.16, 0.12))
    for a in (-22, 8, 30):
        canvas.limb(
            (x + a * s, y - 22 * s), (x + (a - 3) * s, y - 11 * s), (6 * s, 6 * s), shaded((0.7, 0.5, 0.3), 0.9)
        )
    canvas.limb((x - 30 * s, y - 25 * s), (x + 44 * s, y - 13 * s), (2 * s, 2.6 * s), shaded((0.85, 0.64, 0.4), 1.0))


def jetty(canvas: Canvas, rng: RandomState) -> None:
    """A plank jetty that runs from the lower right corner out over the water."""
    near_left, near_right, far_left, far_right = (508.0, 480.0), (668.0, 480.0), (438.0, 372.0), (474.0, 372.0)

    def across(a: Point, b: Point, t: float) -> Point:
        return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t

    for t in (0.0, 0.16, 0.36, 0.62):
        for rail in (across(far_left, near_left, t), across(far_right, near_right, t)):
            size = 3.2 + 7 * t
            canvas.limb(
                (rail[0], rail[1] + 5 * size), (rail[0], rail[1] - 3.4 * size), (size, size), (0.17, 0.12, 0.11)
            )
            canvas.limb(
                (rail[0] - 0.3 * size, rail[1] + 4.6 * size), (rail[0] - 0.3 * size, rail[1] - 3.4 * size),
                (0.34 * size, 0.34 * size), (0.66, 0.46, 0.30),
            )  # fmt: skip
    edges = (np.linspace(0, 1, 27) ** 1.7).tolist()
    for t, u in pairwise(edges):
        u -= 0.10 * (u - t)
        plank = shaded(np.array([0.64, 0.47, 0.33]) * rng.uniform(0.72, 1.15), rng.uniform(0.65, 0.95))
        corners = [across(far_left, near_left, t), across(far_right, near_right, t)]
        canvas.polygon([*corners, across(far_right, near_right, u), across(far_left, near_left, u)], plank)
    canvas.polygon([far_left, (far_left[0], far_left[1] + 4), (near_left[0] - 9, 480), near_left], (0.20, 0.14, 0.12))


def afloat(canvas: Canvas, waterline: float, draw: Callable[[Canvas], None], depth: float = 0.6) -> None:
    """Draw something on the water with its broken reflection below ``waterline``; ``depth`` is how strong that is."""
    layer = canvas.blank()
    draw(layer)
    scale, (rows, columns) = canvas.scale, canvas.alpha.shape
    x, y = pixels(WIDTH, HEIGHT, scale)
    below = np.clip(y - waterline, 0, None)
    shift = (0.6 + 0.10 * below) * gradient_noise(x * 0.02, y * 0.35, 300) * 3
    i = np.clip((2 * waterline - y + 0.5 * shift) * scale, 0, rows - 1).astype(np.int32)
    j = np.clip((x + shift) * scale, 0, columns - 1).astype(np.int32)
    strength: Array = (y > waterline) * np.float32(depth) * np.exp(-below / 70)
    canvas.cover(Canvas(layer.rgb[i, j] * np.float32(0.8), layer.alpha[i, j], scale), strength)
    canvas.cover(layer)
