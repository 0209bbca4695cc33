"""``impasto schema``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from impasto.cli.console import emit_json


class Kind(StrEnum):
    """What there are schemas of."""

    job = "job"
    result = "result"
    event = "event"
    batch = "batch"


def schema(
    kind: Annotated[
        Kind | None, typer.Argument(metavar="[job|result|event|batch]", help="Of what; of all by default.")
    ] = None,
) -> None:
    """Print the JSON schema of jobs (--config), results (--json), events (--events) or batches (batch --json).

    Without a name, all of them are one object whose $defs have them by name.
    """
    from impasto.runtime.batch import BatchJson
    from impasto.runtime.events import Event
    from impasto.runtime.job_spec import JobSpec
    from impasto.runtime.result import ResultJson
    from impasto.runtime.schema import DRAFT, schema_of

    schemas = {Kind.job: JobSpec, Kind.result: ResultJson, Kind.event: Event, Kind.batch: BatchJson}
    if kind is not None:
        emit_json({"$schema": DRAFT, "title": f"impasto {kind}", **schema_of(schemas[kind])})
        return
    emit_json({"$schema": DRAFT, "title": "impasto", "$defs": {k: schema_of(of) for k, of in schemas.items()}})
