"""Impasto: neural style transfer by optimisation, deployed without a training framework.

>>> from impasto import Stylizer
>>> with Stylizer() as stylizer:
...     result = stylizer.stylize("photo.jpg", "painting.jpg", size=512)
>>> result.save("out.png")

Names are loaded on first use, so that ``import impasto`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the subpackages are the folders beside this one (an installed package has them inside).
_checkout = Path(__file__).parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "models").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"

_PUBLIC = {
    "Stylizer": "impasto.runtime.stylizer",
    "Result": "impasto.runtime.result",
    "Step": "impasto.runtime.loop",
    "Preset": "impasto.runtime.presets",
    "Limits": "impasto.runtime.limits",
    "Batch": "impasto.runtime.batch",
    "JobSpec": "impasto.runtime.job_spec",
}
__all__ = [*sorted(_PUBLIC), "__version__"]

if TYPE_CHECKING:
    from impasto.runtime.batch import Batch as Batch
    from impasto.runtime.job_spec import JobSpec as JobSpec
    from impasto.runtime.limits import Limits as Limits
    from impasto.runtime.loop import Step as Step
    from impasto.runtime.presets import Preset as Preset
    from impasto.runtime.result import Result as Result
    from impasto.runtime.stylizer import Stylizer as Stylizer


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'impasto' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
