"""Windows: which part of a picture a backbone has to see so that its taps on a tile come out as on the whole picture.

Geometry alone, from the layer table. A backbone is taken in *pieces*. A piece begins at a tensor of three channels,
small enough to be kept whole, the picture or one that `Halve` makes of it, and ends at the taps and at the next such
tensors. So the halo of a level of the filter bank is that of its own filters, a few positions, and not the thousands of
pixels that its deepest level sees; a VGG is one piece.

A *window* is what a graph is given: a rectangle of the piece's source. Its *interior* is the tile whose positions are
exact there, because the window holds all that they see; what lies between, the *halo*, is computed and thrown away.
The gradient needs no wider one: a cotangent that is zero outside of the interior reaches only what the interior sees,
and all of that is exact.

Windows begin at multiples of the piece's stride, so that poolings meet the same positions as on the whole picture, and
never reach beyond the picture: its border is padded, zero or reflected, where it really is. A pooling in floor mode may
leave a rest at the end of the picture, and none within; therefore all windows have a size that leaves the same rest.
They are all equally large, so that one engine serves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from impasto.models.backbones import Backbone
from impasto.models.layers import IMAGE, Conv, Filters, Halve, Layer, Pool

Box = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True)
class Reach:
    """What a position p of a tensor sees of the source, along one side: p·stride - before … p·stride + after."""

    stride: int = 1
    before: int = 0
    after: int = 0

    def through(self, layer: Layer) -> Reach:
        """Return what a position of the layer's output sees, if this is what one of its input does."""
        first, last = _window(layer)
        return Reach(self.stride * layer.stride, self.before + self.stride * first, self.after + self.stride * last)


def _window(layer: Layer) -> tuple[int, int]:
    """Return how far before and after its place in the source a position of the layer looks."""
    match layer:
        case Conv() | Filters():
            return layer.kernel // 2, layer.kernel // 2
        case Pool():
            return 0, 1
        case Halve():
            return 2, 2
    return 0, 0


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a backbone that is computed window by window.

    ``source`` is the tensor that it reads, ``levels`` those that it makes for other pieces, and ``taps`` those of the
    objective that lie in it, in the order of the data. ``reach`` has what each of both sees of the source.
    """

    source: str
    levels: tuple[str, ...]
    taps: tuple[str, ...]
    reach: Mapping[str, Reach]

    @property
    def stride(self) -> int:
        """The multiple at which windows and tiles begin."""
        return max(reach.stride for reach in self.reach.values())

    @property
    def before(self) -> int:
        """The halo before a tile."""
        return max(reach.before for reach in self.reach.values())

    @property
    def after(self) -> int:
        """The halo after a tile."""
        return max(0, *(reach.after - reach.stride + 1 for reach in self.reach.values()))


def pieces(backbone: Backbone, taps: Iterable[str]) -> tuple[Piece, ...]:
    """Return the pieces of a backbone that the taps, given by canonical names, need, in the order of the data."""
    wanted = set(taps)
    layers = backbone.needed(wanted)
    read = {layer.source for layer in layers}
    roots = [IMAGE, *(layer.name for layer in layers if isinstance(layer, Halve) and layer.name in read)]
    found = []
    for root in roots:
        seen = {root: Reach()}
        for layer in layers:
            # A level is where its piece ends, and the next begins.
            if layer.source in seen and (layer.source == root or layer.source not in roots):
                seen[layer.name] = seen[layer.source].through(layer)
        del seen[root]
        levels = tuple(name for name in seen if name in roots)
        within = tuple(name for name in seen if name in wanted)
        found.append(Piece(root, levels, within, {name: seen[name] for name in seen if name in {*levels, *within}}))
    return tuple(found)


@dataclass(frozen=True)
class Span:
    """A window along one side: ``start`` and ``stop`` of what is read, ``first`` and ``last`` of its interior.

    All in positions of the source; ``stop`` and ``last`` are one past the end. ``end`` is the size of the source.
    """

    start: int
    stop: int
    first: int
    last: int
    end: int

    def interior(self, reach: Reach, size: int) -> tuple[slice, slice]:
        """Return the interior as a slice of a tensor, of ``size`` on the whole picture, and of the window's own."""
        stop = size if self.last == self.end else self.last // reach.stride
        first, offset = self.first // reach.stride, self.start // reach.stride
        return slice(first, stop), slice(first - offset, stop - offset)


@dataclass(frozen=True)
class Side:
    """One side of a piece's source: its size, and by how much windows overlap."""

    size: int
    stride: int
    before: int
    after: int

    def window(self, count: int) -> int:
        """Return the smallest size of a window of which ``count`` cover the side."""
        return self.stride * self._steps(count) + self._rest

    def count(self, window: int) -> int | None:
        """Return how many windows, none larger than this, cover the side; None if they cannot be so small."""
        steps = min((window - self._rest) // self.stride, self._whole)
        if steps < self._least:
            return None
        return 1 if steps == self._whole else -(-(self._whole - self._overlap) // (steps - self._overlap))

    def spans(self, count: int) -> tuple[Span, ...]:
        """Return ``count`` windows of `window` each, as evenly apart as the stride allows; fewer, where those do."""
        length = self.window(count)
        free = self._whole - self._steps(count)
        starts = sorted({self.stride * (free * index // max(1, count - 1)) for index in range(count)})
        halo = self.stride * -(-self.before // self.stride)
        firsts = [0, *(start + halo for start in starts[1:]), self.size]
        return tuple(
            Span(start, start + length, first, last, self.size)
            for start, (first, last) in zip(starts, pairwise(firsts), strict=True)
        )

    @property
    def smallest(self) -> int:
        """The smallest size of a window."""
        return self.stride * self._least + self._rest

    def counts(self) -> Iterator[int]:
        """Yield every number of windows for which they are smaller than for any fewer."""
        count: int | None = 1
        while count is not None:
            yield count
            count = self.count(self.window(count) - self.stride)

    @property
    def _whole(self) -> int:
        """How often the stride goes into the side."""
        return self.size // self.stride

    @property
    def _rest(self) -> int:
        return self.size % self.stride

    @property
    def _overlap(self) -> int:
        """The strides by which a window must overlap the one before it, of which the rest is some already."""
        return -(-self.before // self.stride) - (self._rest - self.after) // self.stride

    @property
    def _least(self) -> int:
        return min(self._whole, max(self._overlap, 0) + 1)

    def _steps(self, count: int) -> int:
        """Return the strides in a window of which ``count`` cover the side."""
        needed = -(-(self._whole + (count - 1) * self._overlap) // count)
        return min(self._whole, max(needed, self._least))


@dataclass(frozen=True)
class Window:
    """One window of a piece."""

    rows: Span
    columns: Span

    @property
    def box(self) -> Box:
        """What it reads of the source."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    def interior(self, reach: Reach, grid: tuple[int, int]) -> tuple[Box, Box]:
        """Return its interior in a tensor whose grid on the whole picture is (h, w), and in the window's own."""
        (top, inner_top), (left, inner_left) = self.rows.interior(reach, grid[0]), self.columns.interior(reach, grid[1])
        return (top, left), (inner_top, inner_left)


@dataclass(frozen=True, eq=False)
class Layout:
    """The windows of a piece for a picture of one size.

    ``shape`` is (h, w) of the source, ``grids`` that of each tensor that the piece makes.
    """

    piece: Piece
    shape: tuple[int, int]
    grids: Mapping[str, tuple[int, int]]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @cached_property
    def window(self) -> tuple[int, int]:
        """Height and width of every window."""
        return self.rows[0].stop, self.columns[0].stop

    @property
    def count(self) -> int:
        """The number of windows."""
        return len(self.rows) * len(self.columns)

    @property
    def pixels(self) -> int:
        """The positions of the source that all windows read."""
        return self.count * self.window[0] * self.window[1]

    def bands(self) -> Iterator[Iterator[Window]]:
        """Yield the windows, those beside each other together, from the top."""
        for rows in self.rows:
            yield (Window(rows, columns) for columns in self.columns)


def layout(backbone: Backbone, piece: Piece, shape: tuple[int, int], most: int | None = None) -> Layout:
    """Lay windows of at most ``most`` positions over a piece, for a picture of (H, W), that read as little as possible.

    None lays a single one. Where even the smallest ones are larger than ``most``, those are taken.
    """
    source = shape if piece.source == IMAGE else backbone.grid(piece.source, shape)
    height, width = (Side(size, piece.stride, piece.before, piece.after) for size in source)
    counts = (1, 1) if most is None else _counts(height, width, most)
    return Layout(
        piece,
        source,
        {name: backbone.grid(name, shape) for name in piece.reach},
        height.spans(counts[0]),
        width.spans(counts[1]),
    )


def _counts(height: Side, width: Side, most: int) -> tuple[int, int]:
    """Return how many windows to lay along each side."""
    best, least = None, 0
    for down in height.counts():
        tall = height.window(down)
        across = width.count(most // tall)
        if across is None:
            continue
        cost = down * tall * across * width.window(across)
        if best is None or cost < least:
            best, least = (down, across), cost
    return best or (max(height.counts()), max(width.counts()))
