"""``impasto engines``."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from impasto.cli import options
from impasto.cli.build_progress import build_progress
from impasto.cli.console import columns, emit, emit_json, human_age, human_bytes, say, spoken_warnings
from impasto.cli.progress import progress
from impasto.errors import EngineError, UsageError

if TYPE_CHECKING:
    from impasto.optimize.cache import Entry
    from impasto.runtime.backends.protocol import Plan

app = typer.Typer(help="Engines: graphs compiled for this machine, kept in the cache.")

_DAY = 86400


@app.command()
def build(
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Width and height of the pictures to come; repeatable. [default: 512x512]"),
    ] = None,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    weights: options.WeightsOption = None,
    backend: options.BackendOption = "auto",
    plan: options.PlanOption = None,
    precision: options.PrecisionOption = None,
    engine_option: options.EngineOptions = None,
    quiet: options.Quiet = False,
) -> None:
    """Compile what painting pictures of given sizes needs, so that the first job does not wait for it.

    For the GPU where there is one: TensorRT's engines and the kernels. Engines for other sizes are compiled when they
    are first needed.
    """
    from impasto.runtime.stylizer import Stylizer

    sizes = [_parse(text) for text in size or ["512x512"]]
    with (
        spoken_warnings(quiet),
        Stylizer(
            preset,
            weights=weights,
            backend=backend,
            plan=cast("Plan | None", plan),
            precision=precision,
            engine_options=options.make_engine_options(engine_option),
        ) as stylizer,
        progress("engines", quiet) as update,
        build_progress(stylizer.backend, update),
    ):
        if not quiet:
            for name, reason in stylizer.passed_over.items():
                say(f"not {name}: {reason}")
        for width, height in sizes:
            stylizer.warm_up(width, height)
            if not quiet:
                say(f"{stylizer.backend.name} engines for {width}x{height}, preset {stylizer.preset.name!r}: ready")


@app.command("list")
def list_engines(json: options.Json = False) -> None:
    """List the engines, the least recently used first, and what they were compiled by and for."""
    from impasto.optimize.cache import EngineCache

    cache = EngineCache()
    engines = [_facts(entry) for entry in cache.entries()]
    if json:
        emit_json({"cache": str(cache.root), "max_bytes": cache.max_bytes, "engines": engines})
        return
    rows = [_row(engine) for engine in engines]
    emit(*(columns(rows) if rows else []), f"engines: {len(rows)}, {human_bytes(cache.size())}")


@app.command()
def verify(json: options.Json = False) -> None:
    """Check every engine's owner, place and files, as each use does; remove nothing.

    Ends with exit code 5 if any is damaged. Such an engine is never used; it is built again when it is next needed.
    """
    from impasto.optimize.cache import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    damage: dict[str, str] = {}
    for entry in entries:
        try:
            cache.verify(entry)
        except FileNotFoundError:
            pass  # another process has pruned it
        except EngineError as error:
            damage[entry.path.name] = str(error)
    if json:
        emit_json({"cache": str(cache.root), "checked": len(entries), "damaged": damage})
    else:
        emit(*damage.values(), f"engines: {len(entries)}, damaged: {len(damage)}")
    if damage:
        raise EngineError(
            f"{len(damage)} of {len(entries)} engines are damaged and will not be used: impasto cache clear removes "
            f"them, with all others"
        )


@app.command()
def prune(
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Remove those that were not used for so long.")
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Remove the least recently used until the rest fits. [default: 4 GiB]"),
    ] = None,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Remove those that this machine and these versions would not use.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Remove engines by age, by origin, and at last by what they take together."""
    from impasto.optimize.cache import EngineCache
    from impasto.optimize.foreign import foreign as reason

    cache = EngineCache() if max_bytes is None else EngineCache(max_bytes=max_bytes)
    now = time.time()
    unwanted = [
        entry
        for entry in cache.entries()
        if (older_than is not None and now - entry.used > older_than * _DAY) or (foreign and reason(entry.key))
    ]
    removed = (*cache.remove(unwanted), *cache.prune())
    left = cache.entries()
    if json:
        emit_json({"removed": [_facts(entry) for entry in removed], "left": [_facts(entry) for entry in left]})
        return
    stuck = len({entry.path for entry in unwanted} & {entry.path for entry in left})
    emit(
        f"removed {len(removed)} engines, {human_bytes(sum(entry.size for entry in removed))}",
        *([f"{stuck} engines could not be removed from {cache.root}"] if stuck else []),
        f"left {len(left)} engines, {human_bytes(sum(entry.size for entry in left))}",
    )


def _facts(entry: Entry) -> dict[str, Any]:
    from impasto.optimize.foreign import foreign

    key = {} if entry.key is None else entry.key.to_json()
    return {
        "name": entry.path.name,
        "bytes": entry.size,
        "used": entry.used,
        "foreign": foreign(entry.key),
        **{name: key.get(name) for name in ("kind", "precision", "shape", "options", "versions", "machine")},
    }


def _row(engine: dict[str, Any]) -> tuple[str, ...]:
    machine, versions = engine["machine"] or {}, engine["versions"] or {}
    # Kernels are compiled by one of several compilers, for a target that is no machine's own.
    compilers = [f"{name} {version}" for name, version in versions.items() if name != "impasto"]
    return (
        engine["name"][:12],
        engine["kind"] or "unreadable",
        versions.get(engine["kind"], ", ".join(compilers)),
        engine["precision"] or "",
        "" if engine["shape"] is None else "×".join(map(str, engine["shape"])) or "any size",
        machine.get("gpu") or machine.get("model") or (engine["options"] or {}).get("target", ""),
        human_bytes(engine["bytes"]),
        human_age(time.time() - engine["used"]),
        f"foreign: {engine['foreign']}" if engine["foreign"] else "",
    )


def _parse(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise UsageError(f"size {text!r}: give width and height in pixels, such as 512x384")
    return int(match[1]), int(match[2])
