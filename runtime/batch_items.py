"""Which pictures a batch paints, where each goes, and how a picture tells which job it is of."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from impasto.errors import ImageError, OutputError, UnknownNameError, UsageError
from impasto.optimize.keys import canonical_json
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.limits import Limits
from impasto.runtime.presets import INITS
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.write_image import IMAGE_FORMATS

SUFFIXES = (*IMAGE_FORMATS, ".gif", ".bmp", ".ppm", ".pgm", ".pnm", ".avif")
"""Of the files that a folder stands for."""

MARK = "Impasto"
"""Under which a picture's metadata has the fingerprint of its job."""


@dataclass(frozen=True)
class Item:
    """One picture of a batch, and where its painting goes."""

    content: Path
    output: Path


def plan_items(images: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str], format: str) -> list[Item]:
    """Return the pictures that files, folders and patterns stand for, in their order, each once.

    A folder stands for the pictures directly in it, by their suffix, sorted by name; a pattern (``*``, ``?``, ``[…]``,
    ``**`` for any folders) for the files that match. Any other path stands for itself, whether it is there or not. The
    painting of ``lake.jpg`` is ``<folder>/lake.<format>``; a ``format`` is a suffix of `IMAGE_FORMATS` without its dot.

    Raises `UsageError` for folders without pictures, patterns that match nothing, two pictures of one name, and
    pictures that lie in ``folder``, where they would be taken for paintings; `UnknownNameError` for another format.
    """
    if f".{format}" not in IMAGE_FORMATS:
        raise UnknownNameError("format", format, [suffix[1:] for suffix in IMAGE_FORMATS])
    out = Path(folder)
    found: dict[Path, Path] = {}
    for each in images:
        for path in _stands_for(os.fspath(each)):
            found.setdefault(path.resolve(), path)
    if not found:
        raise UsageError("no pictures: name files, folders or patterns")
    items: dict[Path, Item] = {}
    for resolved, path in found.items():
        if resolved.parent == out.resolve():
            raise UsageError(
                f"picture {str(path)!r} lies in the folder for paintings, {str(out)!r}: choose another folder, or "
                "name the pictures more narrowly"
            )
        item = Item(path, out / f"{path.stem}.{format}")
        other = items.setdefault(item.output, item)
        if other is not item:
            raise UsageError(
                f"{str(other.content)!r} and {str(path)!r} would both be painted to {str(item.output)!r}: rename one, "
                "or paint them into two folders"
            )
    return list(items.values())


def fingerprint(content: Path, style_digest: str, stylizer: Stylizer, spec: JobSpec, format: str) -> str:
    """Return the SHA-256 of what one picture of a batch is asked to be.

    That is the bytes of its files, the recipe, weights, size, start and seed, the backend, plan and precision as they
    were asked for, format and quality; not threads, limits, paths, or versions: a batch that goes on after an upgrade
    does not begin anew. Raises as `file_digest` does.
    """
    start = spec.init if spec.init is None or spec.init in INITS else file_digest(Path(spec.init), stylizer.limits)
    asked: dict[str, Any] = {
        "content": file_digest(content, stylizer.limits),
        "style": style_digest,
        "init": start,
        "preset": stylizer.preset.to_json(),
        "weights": stylizer.weights.sha256,
        "size": spec.size,
        "scales": spec.scales,
        "seed": spec.seed,
        "backend": spec.backend,
        "plan": spec.plan,
        "precision": spec.precision,
        "format": format,
        "quality": spec.quality,
    }
    return hashlib.sha256(canonical_json(json.loads(json.dumps(asked)))).hexdigest()


def file_digest(path: Path, limits: Limits) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises `ImageError` for what cannot be read or is no regular file, `LimitError` for one that is too large.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"picture {str(path)!r} is not a regular file: give one")
            limits.check_file_bytes(status.st_size, f"picture {str(path)!r}")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"picture {str(path)!r} cannot be read: {reason}") from None


def mark(fingerprint: str) -> Mapping[str, str]:
    """Return the metadata by which a picture tells its job."""
    return {MARK: fingerprint}


def marked(path: Path) -> str | None:
    """Return the fingerprint in a picture's metadata, None for a picture without one and for anything else."""
    try:
        with Image.open(path, formats=sorted({format.upper() for format in IMAGE_FORMATS.values()})) as image:
            if image.format == "PNG":
                found = image.info.get(MARK)
            else:
                found = json.loads(image.getexif()[ExifTags.Base.ImageDescription])[MARK]
    except Exception:  # whatever a foreign file makes of Pillow
        return None
    return found if isinstance(found, str) else None


def make_folder(folder: Path) -> None:
    """Make the folder for paintings; raise `OutputError` where it cannot be made, or is something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"output {str(folder)!r} is a file: give the name of a folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot make the folder {str(folder)!r} ({reason}): choose another") from None


def _stands_for(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and not each.is_dir())
        if not inside:
            raise UsageError(f"folder {name!r} holds no pictures ({', '.join(SUFFIXES)}): name another, or files")
        return inside
    if not os.path.lexists(name) and glob.has_magic(name):
        # Not Path.glob, which takes no absolute patterns.
        names = glob.glob(name, recursive=True)  # noqa: PTH207
        matching = sorted(each for each in map(Path, names) if not each.is_dir())
        if not matching:
            raise UsageError(f"pattern {name!r} matches no file: check it, and that the shell leaves it alone")
        return matching
    return [path]
