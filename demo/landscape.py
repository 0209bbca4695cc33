"""Sky, mountains and water of the demo's content picture: a height field seen in true perspective.

World units: ``x`` to the right, ``z`` into the picture, height above the lake. A point appears at
``X = 320 + FOCAL·x/z``, ``Y = HORIZON - FOCAL·(height - EYE)/z`` in nominal pixels.
"""

from __future__ import annotations

import numpy as np
from noise import Array, fbm, gradient_noise, mix, ridged, smoothstep

WIDTH, HEIGHT = 640, 480
FOCAL, HORIZON, EYE = 533.0, 250.0, 0.32
NEAR, FAR = 4.2, 15.0
SHORE = 286.0  # where the far shore meets the water, nominal pixels from the top
TO_SUN = (-0.78, 0.42, -0.46)  # low, from the left and behind the viewer
SUNLIGHT, SKYLIGHT = (1.30, 0.86, 0.52), (0.30, 0.36, 0.56)


def sky(x: Array, y: Array) -> Array:
    """Evening sky, (rows, columns, 3) in 0 to 1: blue to peach, with cloud banks lit from the lower left."""
    down = y / HORIZON
    colour = mix((0.10, 0.19, 0.42), (0.42, 0.55, 0.74), smoothstep(0.0, 0.62, down))
    colour = mix(colour, (0.98, 0.76, 0.52), smoothstep(0.35, 1.0, down) * (1 - 0.35 * x / WIDTH))
    glow = np.exp(-(((x - 40) / 330) ** 2) - ((y - 235) / 120) ** 2)
    colour = mix(colour, (1.0, 0.86, 0.58), 0.75 * glow)
    # Clouds lie on a plane overhead, so that they flatten and crowd towards the horizon.
    distance = 190 / (HORIZON + 60 - y)
    across = (x - 320) / 150 * distance
    warp = fbm(across * 0.7, distance * 2, 50, 2)
    density = fbm(across * 0.9 + 0.28 * warp, distance * 2.6 + 0.2 * warp, 61, 6, 0.55)
    towards_sun = fbm(across * 0.9 + 0.28 * warp - 0.16, distance * 2.6 + 0.2 * warp + 0.14, 61, 4, 0.55)
    cover = smoothstep(-0.08, 0.34, density)
    lit = smoothstep(-0.25, 0.32, density - towards_sun)
    shade = mix((0.36, 0.38, 0.54), (0.80, 0.52, 0.50), smoothstep(0.2, 0.9, down))
    bright = mix((0.99, 0.90, 0.82), (1.0, 0.78, 0.50), smoothstep(0.15, 0.8, down))
    return mix(colour, mix(shade, bright, lit), 0.92 * cover)


class Terrain:
    """The height field on a fixed grid, with its sunlit shading and cast shadows."""

    def __init__(self) -> None:
        self.step = 0.0125
        self.left = -9.6
        z, x = np.mgrid[NEAR : FAR + 0.5 : self.step, self.left : -self.left : self.step].astype(np.float32)
        self.height = self._heights(x, z)
        dz, dx = np.gradient(self.height, self.step)
        normal = np.stack([-dx, np.ones_like(dx), -dz]) / np.sqrt(1 + dx**2 + dz**2)
        sun = np.asarray(TO_SUN, np.float32) / np.linalg.norm(TO_SUN)
        facing = np.clip(np.tensordot(sun, normal, 1), 0, 1)
        self.light = facing * self._lit()
        self.steepness = 1 - normal[1]

    @staticmethod
    def _heights(x: Array, z: Array) -> Array:
        def peak(cx: float, cz: float, top: float, radius: float) -> Array:
            r = np.hypot(x - cx, (z - cz) * 0.8) / radius
            return top / (1 + 1.7 * r**2)

        shore = 5.0 + 0.45 * fbm(x * 0.55, z * 0 + 2.5, 7, 3)
        land = (z - shore) * 0.09
        hills = 0.75 * smoothstep(5.6, 8.0, z) * (0.55 + fbm(x * 0.6, z * 0.6, 20, 6))
        massif = peak(-1.7, 11.0, 2.3, 1.9) + peak(3.4, 11.5, 1.5, 1.6) + peak(-6.2, 11.0, 1.2, 1.6)
        crags = ridged(x * 0.40 + 3.1, z * 0.40, 31, 7, 0.44)
        return land + hills + smoothstep(6.8, 10.0, z) * (massif * (0.42 + 0.62 * crags) + 0.42 * crags)

    def _lit(self) -> Array:
        """1 in sunlight, 0 in the shadow of something nearer the sun, soft between."""
        rows, columns = self.height.shape
        level = np.hypot(TO_SUN[0], TO_SUN[2])
        clearance = np.full(self.height.shape, 1.0, np.float32)
        for k in range(6, 260, 6):
            i = np.clip(np.arange(rows) + round(k * TO_SUN[2] / level), 0, rows - 1)
            j = np.clip(np.arange(columns) + round(k * TO_SUN[0] / level), 0, columns - 1)
            away = k * self.step
            ray = self.height + away * TO_SUN[1] / level
            clearance = np.minimum(clearance, (ray - self.height[np.ix_(i, j)]) / away)
        return smoothstep(-0.04, 0.10, clearance)

    def sample(self, field: Array, x: Array, z: Array) -> Array:
        """Bilinear values of a grid field at world positions (clamped to the grid)."""
        i = np.clip((z - NEAR) / self.step, 0, field.shape[0] - 1.001).astype(np.float32)
        j = np.clip((x - self.left) / self.step, 0, field.shape[1] - 1.001).astype(np.float32)
        i0, j0 = i.astype(np.int32), j.astype(np.int32)
        fi, fj = i - i0, j - j0
        near = field[i0, j0] * (1 - fj) + field[i0, j0 + 1] * fj
        far = field[i0 + 1, j0] * (1 - fj) + field[i0 + 1, j0 + 1] * fj
        return near * (1 - fi) + far * fi


def first_hit(terrain: Terrain, x: Array, y: Array) -> Array:
    """Depth z of the terrain behind each pixel, (rows, columns); infinite where there is only sky.

    Along a column the highest point seen so far only rises with depth, so one sorted search a column finds the hits.
    """
    depth = np.geomspace(NEAR, FAR, 1400).astype(np.float32)
    columns = x[0]
    height = terrain.sample(
        terrain.height, (columns[None] - 320) / FOCAL * depth[:, None], depth[:, None] + 0 * columns
    )
    seen = np.maximum.accumulate(FOCAL * (height - EYE) / depth[:, None], axis=0)
    above = HORIZON - y[:, 0]
    index = np.stack([np.searchsorted(seen[:, k], above) for k in range(columns.size)], axis=1)
    return np.append(depth, np.inf).astype(np.float32)[index]


def mountains(x: Array, y: Array, backdrop: Array) -> Array:
    """``backdrop`` with the far shore, forests, crags and snow in front of it, veiled by distance."""
    terrain = Terrain()
    z = first_hit(terrain, x, y)
    land = np.isfinite(z)
    depth = z[land]
    wx = (x[land] - 320) / FOCAL * depth
    height = terrain.sample(terrain.height, wx, depth)
    light, steep = terrain.sample(terrain.light, wx, depth), terrain.sample(terrain.steepness, wx, depth)
    grain = fbm(wx * 14, depth * 14, 80, 3)
    patch = fbm(wx * 1.7, depth * 1.7, 90, 4)

    rock = mix((0.33, 0.29, 0.29), (0.56, 0.47, 0.40), 0.5 + 0.5 * grain)
    meadow = mix((0.33, 0.40, 0.14), (0.60, 0.53, 0.20), 0.5 + 0.8 * patch)
    trees = mix((0.07, 0.15, 0.10), (0.20, 0.28, 0.11), 0.5 + 0.9 * grain)
    ground = mix(meadow, trees, smoothstep(-0.08, 0.08, patch + 0.25 * smoothstep(0.15, 0.5, height)))
    ground = mix(ground, rock, smoothstep(0.75, 1.35, height + 0.5 * patch + 0.3 * grain))
    snowline = height - 1.9 * steep + 0.35 * patch + 0.15 * grain
    ground = mix(ground, (0.84, 0.86, 0.95), smoothstep(0.95, 1.25, snowline))
    shaded = ground * (np.asarray(SKYLIGHT, np.float32) + 0.95 * light[:, None] * np.asarray(SUNLIGHT, np.float32))
    air = 1 - np.exp(-np.clip(depth - 5, 0, None) * 0.085 * np.exp(-0.45 * height))
    picture = backdrop.copy()
    picture[land] = mix(np.clip(shaded, 0, 1), (0.66, 0.62, 0.70), air)
    return picture


def lake(x: Array, y: Array, picture: Array, scale: float) -> Array:
    """``picture`` with everything below the shore replaced by its rippled mirror image."""
    columns = y.shape[1]
    below = np.clip(y - SHORE, 0, None)
    distance = 30 / (below + 6)  # ripples crowd towards the far shore
    ripple = fbm(x * 0.012 / np.sqrt(distance), 26 * distance, 120, 4, 0.6)
    fine = gradient_noise(x * 0.05 / np.sqrt(distance), 70 * distance, 140)
    amount = np.minimum(below * 0.16, 11)
    source_x = x + 0.35 * amount * fine
    source_y = SHORE - 1.12 * below + amount * (1.6 * ripple + 0.6 * fine)
    i = np.clip((source_y * scale).astype(np.int32), 0, round(SHORE * scale) - 1)
    j = np.clip((source_x * scale).astype(np.int32), 0, columns - 1)
    # Fresnel: the water mirrors at a grazing angle and shows its own depth below the viewer's feet.
    clear = 0.12 + 0.50 * smoothstep(10, 190, below + 16 * ripple)
    water = mix(picture[i, j] * np.float32(0.94), (0.05, 0.16, 0.24), clear)
    breeze = smoothstep(0.25, 0.5, fbm(x * 0.004, 9 * distance, 160, 3)) * smoothstep(4, 20, below)
    water = mix(water, (0.62, 0.66, 0.74), 0.30 * breeze)
    return np.where((y > SHORE)[..., None], water, picture).astype(np.float32)
