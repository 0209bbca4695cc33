"""Oil paint laid on stroke by stroke: bristle marks, dry ends, and the relief that a low light makes visible.

A stroke is a path swept by a brush of some width. Its samples are addressed by ``s`` along the path and ``t`` across
it, both 0 to 1, and are written straight to the nearest pixels, denser than the pixels lie; the last one wins.
Lengths are in nominal pixels throughout, so a painting looks the same at any scale.
"""

from __future__ import annotations

import numpy as np
from noise import Array, smoothstep
from PIL import Image

RandomState = np.random.RandomState
ACROSS, ALONG = 64, 160  # samples of a bristle pattern


def bristle_patterns(count: int, rng: RandomState) -> Array:
    """Grooves that bristles leave, (count, ACROSS, ALONG), about -1 to 1: fine across the stroke, slow along it."""
    patterns = []
    for _ in range(count):
        total = np.zeros((ACROSS, ALONG), np.float32)
        for bristles, turns, weight in ((7, 3, 0.40), (15, 4, 0.35), (30, 7, 0.30)):
            knots = rng.normal(0, 0.35, (bristles, turns)) + rng.normal(0, 0.9, (bristles, 1))
            coarse = Image.fromarray(knots.astype(np.float32))
            total += weight * np.asarray(coarse.resize((ALONG, ACROSS), Image.Resampling.BICUBIC), np.float32)
        patterns.append(np.clip(total, -1, 1))
    return np.stack(patterns)


class Painting:
    """An underpainting, (rows, columns, 3) in 0 to 1, with the wet paint on it: ``rgb``, and ``height`` of the relief.

    ``scale`` is how many pixels make one nominal pixel; ``seed`` draws the bristles of the brushes.
    """

    def __init__(self, ground: Array, scale: float, seed: int) -> None:
        self.scale = scale
        self.rgb = ground.astype(np.float32)
        self.height: Array = np.zeros(ground.shape[:2], np.float32)
        self.patterns = bristle_patterns(32, RandomState(seed))

    def stroke(self, path: Array, width: float, colours: Array, load: float, dryness: float, pattern: int) -> None:
        """Sweep the brush along ``path``, (points, 2) nominal (X, Y).

        ``colours`` (2, 3) are the body and the streak that the bristles carry; ``load`` is the thickness of the paint;
        ``dryness`` 0 covers to the end, 1 breaks up into single bristles from about half-way.
        """
        steps = np.hypot(*np.diff(path, axis=0).T)
        length = float(steps.sum())
        s = np.linspace(0, 1, max(4, int(length * self.scale * 1.6)), dtype=np.float32)
        t = np.linspace(0, 1, max(3, int(width * self.scale * 1.7)), dtype=np.float32)
        knots = np.append(0, np.cumsum(steps)) / length
        spine = np.stack([np.interp(s, knots, path[:, k]) for k in (0, 1)], 1)
        tangent = np.gradient(spine, axis=0)
        kernel = np.ones(9) / 9  # corners of the path would tear the outer edge
        tangent = np.stack([np.convolve(np.pad(tangent[:, k], 4, "edge"), kernel, "valid") for k in (0, 1)], 1)
        tangent /= np.maximum(np.hypot(*tangent.T), 1e-9)[:, None]
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
        offset = (t - 0.5) * np.float32(width)
        spots = spine[:, None] + normal[:, None] * offset[None, :, None]
        column = np.floor(spots[..., 0] * self.scale).astype(np.int32)
        row = np.floor(spots[..., 1] * self.scale).astype(np.int32)

        groove = self.patterns[pattern][(t * (ACROSS - 1)).astype(int)][:, (s * (ALONG - 1)).astype(int)].T
        inside = (row >= 0) & (row < self.height.shape[0]) & (column >= 0) & (column < self.height.shape[1])
        edge = np.abs(2 * t - 1)[None, :]
        cap = np.minimum(0.5 * width / length, 0.5)
        to_end = np.minimum(s, 1 - s)[:, None] / np.float32(cap)
        rounded = edge**2 + np.clip(1 - to_end, 0, 1) ** 2 < 1 + 0.5 * groove
        painted = groove + 1.25 > dryness * 2.2 * smoothstep(0.35, 1.0, s)[:, None] + 0.8 * edge**6
        here = inside & rounded & painted
        row, column, groove = row[here], column[here], groove[here]
        s_here, edge_here = np.broadcast_to(s[:, None], here.shape)[here], np.broadcast_to(edge, here.shape)[here]

        streak = smoothstep(0.05, 0.65, groove)[:, None]
        self.rgb[row, column] = colours[0] * (1 - streak) + colours[1] * streak
        # Paint is pushed to the sides of the brush and left in a lip where it stops.
        lip = 0.55 * smoothstep(0.55, 0.92, edge_here) + 0.5 * smoothstep(0.80, 0.97, s_here)
        relief = load * np.sqrt(width) * (0.5 + 0.55 * groove + lip)
        self.height[row, column] = 0.45 * self.height[row, column] + relief

    def lit(self, strength: float) -> Array:
        """The painting under a lamp from the upper left, (rows, columns, 3), 0 to 1.

        Lambert's shading relative to the flat canvas, and Blinn's highlight, of the relief scaled by ``strength``.
        """
        smooth = self.height
        for _ in range(max(1, round(self.scale**2))):  # the same blur in nominal pixels at every scale
            high = np.pad(smooth, 1, "edge")
            smooth = (high[1:-1, 1:-1] * 4 + high[:-2, 1:-1] + high[2:, 1:-1] + high[1:-1, :-2] + high[1:-1, 2:]) / 8
        dy, dx = np.gradient(smooth, np.float32(1 / self.scale))
        normal = np.stack([-strength * dx, -strength * dy, np.ones_like(dx)])
        normal /= np.sqrt((normal**2).sum(0))
        light = np.array([-0.52, -0.60, 0.61], np.float32)
        half = light + np.array([0, 0, 1], np.float32)
        diffuse = np.clip(np.tensordot(light, normal, 1), 0, 1) / light[2]
        gloss = np.clip(np.tensordot(half / np.linalg.norm(half), normal, 1), 0, 1) ** 36
        flat_gloss = (half[2] / np.linalg.norm(half)) ** 36
        shaded = self.rgb * (0.30 + 0.70 * diffuse)[..., None] + 0.22 * np.maximum(gloss - flat_gloss, 0)[..., None]
        return np.clip(shaded, 0, 1).astype(np.float32)
