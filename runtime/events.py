"""What happens while something is painted, as JSON types: one object a line, for whoever follows along."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypedDict

from impasto.runtime.batch import PictureEvent
from impasto.runtime.loop import Step
from impasto.runtime.result import Result, ResultJson
from impasto.runtime.schema import About


class StepEvent(TypedDict):
    """A `Step`: one evaluation of the loss and its gradient."""

    event: Literal["step"]
    iteration: int
    evaluation: int
    seconds: Annotated[float, About("Since the painting began.")]
    loss: Annotated[float | None, About("Null where the evaluation failed.")]
    terms: dict[str, float | None]
    best: Annotated[bool, About("Whether this is the lowest loss of its stage so far.")]
    size: Annotated[list[int], About("Width and height of the stage.")]


class ResultEvent(TypedDict):
    """The end of a painting."""

    event: Literal["result"]
    result: ResultJson


Event = StepEvent | ResultEvent | PictureEvent


def step_event(step: Step) -> StepEvent:
    """Return what `Step` tells, without its preview."""
    return {
        "event": "step",
        "iteration": step.iteration,
        "evaluation": step.evaluation,
        "seconds": step.seconds,
        "loss": _finite(step.loss),
        "terms": {name: _finite(value) for name, value in step.terms.items()},
        "best": step.best,
        "size": list(step.size),
    }


def result_event(result: Result, output: str | None = None) -> ResultEvent:
    """Return what a result tells, without its pixels."""
    return {"event": "result", "result": result.to_json(output)}


def line(event: Mapping[str, object]) -> str:
    """Return an event as a line of JSON, with its end."""
    return json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
