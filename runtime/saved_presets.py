"""Presets that the user saved: one JSON file each, in the user's folder for settings."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import platformdirs

from impasto.errors import OutputError, UnknownNameError, UsageError
from impasto.runtime.files import write_atomically
from impasto.runtime.presets import Preset

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def presets_dir() -> Path:
    """Return the folder of saved presets: in ``$IMPASTO_CONFIG``, or else in the user's own for settings.

    It need not exist yet. Unlike the cache it holds what nothing else brings back.
    """
    chosen = os.environ.get("IMPASTO_CONFIG")
    return (Path(chosen).expanduser() if chosen else platformdirs.user_config_path("impasto")) / "presets"


def saved_presets() -> dict[str, Path]:
    """Return the presets that were saved, name to file, sorted by name."""
    found = {path.stem: path for path in sorted(presets_dir().glob("*.json"))}
    return {name: path for name, path in found.items() if _NAME.fullmatch(name)}


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset that `save_preset` wrote; raise `UsageError` for a file that cannot be read or holds none."""
    name = os.fspath(path)
    try:
        return Preset.from_json(json.loads(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"preset {name!r} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError, UsageError) as error:
        raise UsageError(f"preset {name!r} is damaged: save it again, or remove it ({error})") from None


def save_preset(name: str, preset: Preset, *, overwrite: bool = False) -> Path:
    """Keep a preset under a name of the user's, and return its file.

    Raises `UsageError` for a name that cannot be one or is that of a preset of Impasto's, `OutputError` for one that is
    there unless ``overwrite``, and where nothing can be written.
    """
    from impasto.runtime.recipes import PRESETS

    if not _NAME.fullmatch(name):
        raise UsageError(
            f"preset name {name!r}: give up to 64 small letters, digits, and, not first, dashes, dots and underscores"
        )
    if name in PRESETS:
        raise UsageError(f"preset {name!r} is Impasto's own: choose another name")
    path = presets_dir() / f"{name}.json"
    if path.exists() and not overwrite:
        raise OutputError(f"preset {name!r} exists: choose another name, or replace it with overwrite=True (--force)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {str(path.parent)!r} ({error.strerror}): set IMPASTO_CONFIG to another"
        ) from None
    text = json.dumps(replace(preset, name=name).to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, text.encode() + b"\n", overwrite)
    return path


def remove_preset(name: str) -> None:
    """Remove a saved preset; raise `UnknownNameError` where there is none of that name."""
    saved = saved_presets()
    if name not in saved:
        raise UnknownNameError("saved preset", name, saved)
    with contextlib.suppress(FileNotFoundError):
        saved[name].unlink()
