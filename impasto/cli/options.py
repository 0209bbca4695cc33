"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from impasto.cli.console import say
from impasto.errors import UsageError

if TYPE_CHECKING:
    from impasto.export.forward import Pooling
    from impasto.runtime.job_spec import JobSpec
    from impasto.runtime.limits import Limits
    from impasto.runtime.presets import Preset
    from impasto.runtime.result import Result

DEFAULT_PRESET = "impasto"

_OBJECTIVE = "What is painted"
_ENGINE = "How it is computed"
_LIMITS = "Limits (0 or none lifts one)"


def _limit(text: str) -> int:
    """Parse a limit: a whole number, 0 for none."""
    if text == "none":
        return 0
    try:
        value = int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no limit: give a whole number, or none") from None
    if value < 0:
        raise typer.BadParameter(f"{value} is no limit: give a whole number, or none")
    return value


def _limit_option(name: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, parser=_limit, metavar="N|none", help=help, rich_help_panel=_LIMITS, show_default=False
    )
    return option


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _memory(text: str) -> float:
    """Parse a limit of memory: bytes with an optional unit, a share in percent, 0 for none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:(%)|([kMGT]?)B?)", text)
    if text == "none" or (match and float(match[1]) == 0):
        return 0
    if match and match[2] and float(match[1]) <= 100:
        return float(match[1]) / 100
    if match and not match[2]:
        return max(1, int(float(match[1]) * _UNITS[match[3]]))
    raise typer.BadParameter(
        f"{text!r} is no limit of memory: give bytes (3GB, 800MB), a share of what is free (80%), or none"
    )


PresetOption = Annotated[
    str, typer.Option("--preset", metavar="NAME", help="Recipe to follow; see impasto presets list.")
]
ContentWeight = Annotated[
    float | None,
    typer.Option(help="Weight of the content terms (the largest; others in proportion).", rich_help_panel=_OBJECTIVE),
]
StyleWeight = Annotated[
    float | None,
    typer.Option(help="Weight of the style terms (the largest; others in proportion).", rich_help_panel=_OBJECTIVE),
]
TvWeight = Annotated[float | None, typer.Option(help="Weight of the total variation.", rich_help_panel=_OBJECTIVE)]
PoolingOption = Annotated[
    str | None,
    typer.Option("--pooling", metavar="max|average", help="Pooling of the network.", rich_help_panel=_OBJECTIVE),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME|PATH",
        help="Network weights: a name of impasto weights list, or a safetensors file. (default: the preset's)",
        rich_help_panel=_ENGINE,
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="auto|NAME",
        help="What runs the graphs: tensorrt, cuda, openvino (openvino:GPU, openvino:NPU), onnxruntime, "
        "onnxruntime-cuda, onnxruntime-tensorrt, torch, torch-cuda; auto is the first of the first four that can run.",
        rich_help_panel=_ENGINE,
    ),
]
ScalesOption = Annotated[
    str,
    typer.Option(
        "--scales",
        metavar="auto|N|LIST",
        help="Sizes to paint at, one after the other: as suits the size, a number of them, or shares (0.25,0.5,1).",
    ),
]
PlanOption = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="fused|sliced|tiled",
        help="One graph for all, one a slice, or window by window in little memory. (default: fused; on tensorrt and "
        "cuda the faster of the first two; tiled where memory does not suffice for that)",
        rich_help_panel=_ENGINE,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|tf32|fp16|bf16",
        help="What the network computes in. (default: tf32 on GPUs, bf16 by openvino on CPUs that have it, else fp32)",
        rich_help_panel=_ENGINE,
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="How TensorRT builds: level=0..5 (how hard it searches), workspace=BYTES, refit=true. Repeatable; engines "
        "built with other options are other engines.",
        rich_help_panel=_ENGINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of ONNX Runtime; by default as many as CPUs.", rich_help_panel=_ENGINE),
]
MaxFileBytes = Annotated[int | None, _limit_option("--max-file-bytes", "Bytes of a picture's file.")]
MaxPixels = Annotated[int | None, _limit_option("--max-pixels", "Pixels of an input picture.")]
MaxLongSide = Annotated[int | None, _limit_option("--max-long-side", "Longer side of the result, in pixels.")]
MaxIterations = Annotated[int | None, _limit_option("--max-iterations", "Iterations of the solver.")]
MaxEvaluations = Annotated[int | None, _limit_option("--max-evaluations", "Evaluations of the objective.")]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        parser=_memory,
        metavar="BYTES|PERCENT|none",
        help="Memory that the job may take: 3GB, or 80% of what machine and container have free, the default.",
        rich_help_panel=_LIMITS,
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="JOB",
        help="A job's file, .toml or .json; options of the command line come before what it says. See impasto schema.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors, and what --json asks for.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Picture to write: PNG, JPEG, WebP, TIFF.")]


def make_preset(
    name: str,
    weights: str | None,
    *,
    quiet: bool = False,
    solver: str | None = None,
    pooling: str | None = None,
    content_weight: float | None = None,
    style_weight: float | None = None,
    tv_weight: float | None = None,
) -> Preset:
    """Return the preset of that name with the changes that were asked for.

    ``weights`` are those that the user names, by which the default is chosen; unless ``quiet`` a line tells of it.
    Raises `UnknownNameError` for a preset or solver that does not exist, `UsageError` for changes that cannot work.
    """
    from impasto.runtime.default import choose

    preset, note = choose(name, weights)
    if note and not quiet:
        say(note)
    if pooling is not None:
        preset = replace(preset, objective=replace(preset.objective, pooling=cast("Pooling", pooling)))
    if solver is not None:
        preset = preset.with_solver(solver)
    return preset.with_weights(content_weight, style_weight, tv_weight)


_LIMIT_OPTIONS = {"memory_limit": "memory"}
_LIMIT_NAMES = ("max_file_bytes", "max_pixels", "max_long_side", "max_iterations", "max_evaluations", "memory_limit")


def make_job(context: typer.Context, config: Path | None, needed: Sequence[str] = ()) -> JobSpec:
    """Return the job of a file with what the command line changes; fields that it ``needed`` are there.

    Parameters of the command are taken by the names of the job's fields. Raises `UsageError` for a file that is no
    job, values that cannot be, and a needed field that neither has.
    """
    from impasto.runtime.job_spec import JobSpec, read_job
    from impasto.runtime.scales import parse_scales

    spec = JobSpec() if config is None else read_job(config)
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    limits = {_LIMIT_OPTIONS.get(name, name): given[name] for name in _LIMIT_NAMES if name in given}
    known = {field.name for field in fields(JobSpec)}
    changes = {name: str(v) if isinstance(v, Path) else v for name, v in given.items() if name in known}
    if "scales" in given:
        changes["scales"] = parse_scales(given["scales"])
    if "engine_option" in given:
        changes["engine_options"] = {**spec.engine_options, **make_engine_options(given["engine_option"])}
    if limits:
        changes["limits"] = {**spec.limits, **limits}
    spec = JobSpec.from_json(spec.changed(changes).to_json())
    for name in needed:
        if getattr(spec, name) is None:
            way = "--output (-o)" if name == "output" else name.upper()
            raise UsageError(
                f"no {name}: give {way}, or {name} in the file of --config ({context.command_path} --help)"
            )
    return spec


def with_output(result: Result, spec: JobSpec) -> Result:
    """Return a result whose job says where its picture goes, and in which quality."""
    output = {"output": str(Path(cast("str", spec.output)).resolve()), "quality": spec.quality}
    return replace(result, job={**result.job, **output})


def make_engine_options(given: list[str] | None) -> dict[str, object]:
    """Return ``NAME=VALUE`` options with their values as numbers and truth values; raise `UsageError` for others."""
    found: dict[str, object] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not (equals and (value in ("true", "false") or value.isdecimal())):
            raise UsageError(
                f"engine option {text!r}: give NAME=VALUE, such as level=5, workspace=1000000000, refit=true"
            )
        found[name] = int(value) if value.isdecimal() else value == "true"
    return found


def make_limits(**given: float | None) -> Limits:
    """Return the limits with those replaced that were given; 0 lifts one."""
    from impasto.runtime.limits import Limits

    return Limits.from_json({name: value or None for name, value in given.items() if value is not None})
