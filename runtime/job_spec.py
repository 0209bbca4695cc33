"""A job as a value: what a file of a job holds, what ``--json`` prints, and the way between the two and a painting."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from impasto.errors import UsageError
from impasto.export.forward import Pooling
from impasto.models.locate import DRAWN, available
from impasto.models.sources import SOURCES
from impasto.optimize.cpus import available_cpus
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.default import choose
from impasto.runtime.identity import picture_digest
from impasto.runtime.images import Picture
from impasto.runtime.limits import Limits
from impasto.runtime.presets import INITS, Preset
from impasto.runtime.schema import About, check, schema_of

if TYPE_CHECKING:
    from impasto.runtime.painting import Job

_MAX_BYTES = 16 * 2**20
"""Of a job's file; a result with the trace of a long job has a few."""


@dataclass(frozen=True)
class JobSpec:
    """One request to the runtime, as JSON types; what is None or left out is the preset's, or Impasto's own choice.

    The fields are those of a job's file, and of the object ``job`` in what ``impasto stylize --json`` prints.
    ``preset`` is a name, or a whole preset as `Preset.to_json` writes it; the changes to it (``size`` to ``solver``)
    are made in the order of the command line: pooling, solver, weights of the terms, iterations, size. Limits of None
    or 0 are lifted.

    ``digests`` are what the job was painted with: SHA-256 of the pixels of ``content``, ``style`` and ``init``, and of
    ``weights``; with other ones it is not painted.
    """

    content: Annotated[str | None, About("Path of the picture whose content is kept.")] = None
    style: Annotated[str | None, About("Path of the picture whose style is taken.")] = None
    output: Annotated[str | None, About("Path of the picture to write.")] = None
    preset: Annotated[str | Preset, About("Name of a preset, or a preset whole.")] = "impasto"
    size: Annotated[int | None, About("Long side of the result in pixels.", low=1)] = None
    iterations: Annotated[int | None, About("Iterations of the solver.", low=1)] = None
    scales: Annotated[
        Literal["auto", "preset"] | int | tuple[float, ...],
        About("Sizes to paint at: auto, preset (its own), their number, or their shares of the size, 1 the last."),
    ] = "auto"
    init: Annotated[str | None, About("What to start from: content, noise, style, or a picture's path.")] = None
    seed: Annotated[int, About("Seed of the noise.", low=0, high=2**32 - 1)] = 0
    content_weight: Annotated[float | None, About("Largest weight of the content terms.", low=0)] = None
    style_weight: Annotated[float | None, About("Largest weight of the style terms.", low=0)] = None
    tv_weight: Annotated[float | None, About("Weight of the total variation.", low=0)] = None
    pooling: Annotated[Pooling | None, About("Pooling of the network.")] = None
    solver: Annotated[str | None, About("Another solver, for as many iterations.")] = None
    weights: Annotated[str | None, About("Network weights: a name, or a safetensors file's path.")] = None
    backend: Annotated[str, About("What runs the graphs; auto is the first that can.")] = "auto"
    plan: Annotated[Plan | None, About("How an iteration is laid out.")] = None
    precision: Annotated[str | None, About("What the network computes in.")] = None
    engine_options: Annotated[Mapping[str, int | bool], About("How TensorRT builds.")] = field(default_factory=dict)
    threads: Annotated[int | None, About("Threads of the CPU.", low=1)] = None
    tile_memory: Annotated[int | None, About("Bytes that the plan tiled may take.", low=1)] = None
    quality: Annotated[int, About("Quality of JPEG and WebP.", low=1, high=100)] = 95
    limits: Annotated[Mapping[str, float | None], About("Limits by name; 0 or null lifts one.")] = field(
        default_factory=dict
    )
    digests: Annotated[Mapping[str, str], About("SHA-256 of what the job was painted with.")] = field(
        default_factory=dict
    )

    @classmethod
    def from_json(cls, values: Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> JobSpec:
        """Return the job that `to_json` wrote, or somebody by hand; relative paths are taken from ``folder``.

        A result that ``--json`` printed stands for the job in it. Raises `UsageError` for unknown keys and for values
        that cannot be.
        """
        if isinstance(values, Mapping) and isinstance(values.get("job"), Mapping):
            values = values["job"]
        check(values, schema_of(cls))
        given = dict(values)
        if isinstance(given.get("preset"), Mapping):
            given["preset"] = Preset.from_json({"sizing": asdict(Preset.sizing), **given["preset"]})
        if isinstance(given.get("scales"), list):
            given["scales"] = tuple(given["scales"])
        spec = cls(**given)
        spec.make_limits()
        return spec if folder is None else spec.located(folder)

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults, as JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.preset, Preset):
            values["preset"] = self.preset.to_json()
        kept = {name: value for name, value in values.items() if value != _default(name)}
        found: dict[str, Any] = json.loads(json.dumps(kept))
        return found

    def located(self, folder: str | os.PathLike[str]) -> JobSpec:
        """Return the job with its relative paths taken from a folder, and so absolute."""

        def at(path: str | None) -> str | None:
            return None if path is None else str(Path(folder, path).resolve())

        init = self.init if self.init in INITS else at(self.init)
        weights = at(self.weights) if self.weights is not None and is_path(self.weights, folder) else self.weights
        return replace(
            self, content=at(self.content), style=at(self.style), output=at(self.output), init=init, weights=weights
        )

    def changed(self, given: Mapping[str, Any]) -> JobSpec:
        """Return the job with other fields; digests of what is given anew go."""
        digests = {name: digest for name, digest in self.digests.items() if name not in given}
        return replace(self, **{"digests": digests, **given})

    def recipe(self) -> tuple[Preset, str | None]:
        """Return the preset with its changes but for size, and a line to tell of how it was chosen.

        Raises `UnknownNameError` for a preset or solver that does not exist, `UsageError` for changes that cannot work.
        """
        preset, note = choose(self.preset, self.weights) if isinstance(self.preset, str) else (self.preset, None)
        if self.pooling is not None:
            preset = replace(preset, objective=replace(preset.objective, pooling=self.pooling))
        if self.solver is not None:
            preset = preset.with_solver(self.solver)
        preset = preset.with_weights(self.content_weight, self.style_weight, self.tv_weight)
        return preset if self.iterations is None else preset.with_iterations(self.iterations), note

    def whole_preset(self) -> Preset:
        """Return the preset with all that the job changes of it, size and start too; raises as `recipe` does.

        Raises `UsageError` for a start that is a picture, which a preset cannot hold.
        """
        preset, _ = self.recipe()
        if self.size is not None:
            preset = replace(preset, sizing=preset.sizing.with_size(self.size))
        if self.init is None:
            return preset
        if self.init not in INITS:
            raise UsageError(f"init is {self.init!r}: a preset starts from one of {', '.join(INITS)}")
        return replace(preset, init=self.init)

    def make_limits(self) -> Limits:
        """Return the limits; raise `UnknownNameError` or `UsageError` as they do."""
        return Limits.from_json({name: value or None for name, value in self.limits.items()})


def read_job(path: str | os.PathLike[str]) -> JobSpec:
    """Read a job's file, TOML or JSON by its suffix; relative paths in it are taken from its folder.

    Raises `UsageError` for a file that cannot be read, or is not what its suffix says, or not a job.
    """
    name = os.fspath(path)
    parsers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _parse_json}
    parse = parsers.get(Path(name).suffix.lower())
    if parse is None:
        raise UsageError(f"job {name!r}: its name must end in .toml or .json, which says what it holds")
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"job {name!r} cannot be read ({reason}): check the path") from None
    if len(data) > _MAX_BYTES:
        raise UsageError(f"job {name!r} has more than {_MAX_BYTES} bytes: give a job's file")
    try:
        values = parse(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"job {name!r} is no {Path(name).suffix[1:].upper()} ({error}): mend it there") from None
    try:
        return JobSpec.from_json(values, Path(name).parent)
    except UsageError as error:
        raise UsageError(f"job {name!r}: {error}") from None


def described(job: Job, backend: Backend) -> dict[str, Any]:
    """Return a job that is painted, by what it was settled to, as JSON types of a `JobSpec`.

    Read again it paints the same bits, on the machine, versions and memory that it was painted with. Pictures that
    were not files have no path in it.
    """
    plan = job.plan or (backend.plans[0] if len(backend.plans) == 1 else None)
    given = {"content": job.content, "style": job.style, "init": job.start}
    pictures = {name: picture for name, picture in given.items() if picture is not None}
    digests = {name: picture_digest(picture) for name, picture in pictures.items()}
    paths: dict[str, Any] = {name: _path(picture) for name, picture in pictures.items()}
    spec = JobSpec(
        preset=replace(job.preset, sizing=job.sizing),
        scales="preset",
        seed=job.seed,
        backend=backend.name,
        plan=plan,
        precision=backend.precision,
        threads=job.threads or available_cpus(),
        tile_memory=job.tile_memory,
        digests=digests | {"weights": job.weights.sha256},
        **paths,
        **dict(job.settings),
    )
    return spec.to_json()


def is_path(weights: str, folder: str | os.PathLike[str] = ".") -> bool:
    """Tell whether weights are named by a file's path, as `find_weights` takes it from a folder."""
    if DRAWN.fullmatch(weights) or weights in available():
        return False
    path = Path(weights)
    return bool(path.suffix or len(path.parts) > 1 or (weights not in SOURCES and Path(folder, path).is_file()))


def _path(picture: Picture) -> str | None:
    return None if picture.name.startswith("<") else str(Path(picture.name).resolve())


def _default(name: str) -> Any:
    found = next(f for f in fields(JobSpec) if f.name == name)
    return found.default_factory() if found.default_factory is not MISSING else found.default


def _parse_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number in JSON")

    return json.loads(text, parse_constant=refuse)
