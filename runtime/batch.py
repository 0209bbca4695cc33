"""Many pictures in one style: painted side by side, each once, none lost to another's trouble."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from impasto.errors import ImpastoError, LimitError, OutputError, UsageError
from impasto.optimize.cpus import available_cpus
from impasto.runtime.batch_items import Item, file_digest, fingerprint, make_folder, mark, marked, plan_items
from impasto.runtime.budget import Budget
from impasto.runtime.files import check_writable
from impasto.runtime.fitting import fit
from impasto.runtime.footprint import is_known
from impasto.runtime.forecast import forecast
from impasto.runtime.job_spec import JobSpec
from impasto.runtime.jobs import open_stylizer, read_pictures
from impasto.runtime.painting import Painting
from impasto.runtime.read_image import read_image
from impasto.runtime.schema import About
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.write_image import write_image

Status = Literal["painted", "present", "failed"]

_logger = logging.getLogger("impasto")


class PictureEvent(TypedDict):
    """An `Outcome` as JSON types."""

    event: Literal["picture"]
    content: str
    output: str
    status: Annotated[Status, About("present: it was there already, of the same job.")]
    seconds: float
    loss: Annotated[float | None, About("Of the painting; null where nothing was painted.")]
    error: str | None
    exit_code: Annotated[int | None, About("What impasto stylize would have ended with.")]


class BatchJson(TypedDict):
    """A batch as JSON types; what was stopped has no outcome."""

    painted: int
    present: int
    failed: int
    stopped: Annotated[int, About("Pictures that the same command would go on with.")]
    pictures: list[PictureEvent]


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: painted, present (there already, of the same job) or failed.

    ``seconds`` is what that took, reading and writing included. ``error`` is the reason for a failure, in one line.
    """

    content: str
    output: str
    status: Status
    seconds: float = 0.0
    loss: float | None = None
    error: ImpastoError | None = None

    def to_json(self) -> PictureEvent:
        """Return everything as JSON types."""
        return {
            "event": "picture",
            "content": self.content,
            "output": self.output,
            "status": self.status,
            "seconds": self.seconds,
            "loss": self.loss,
            "error": None if self.error is None else str(self.error),
            "exit_code": None if self.error is None else self.error.exit_code,
        }


class Batch:
    """Pictures to be painted in one style, into one folder.

    ``spec`` says in which style and how; its ``content`` and ``output`` are not looked at. ``images`` are files,
    folders and patterns (`plan_items`). ``jobs`` is how many are painted at the same time, by default as many as there
    are CPUs, with the CPUs shared out among them; memory that the limits leave is shared out too, by what each job is
    foretold to take. On a GPU it is one.

    A painting that is there already is told by the fingerprint in its metadata: of the same job it is left as it is,
    of any other it is an error unless ``overwrite``.

    Raises as `plan_items` and `make_folder` do; `UsageError` for a job without a style, or ``jobs`` below 1.
    """

    def __init__(
        self,
        images: Iterable[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        spec: JobSpec,
        *,
        format: str = "png",
        jobs: int | None = None,
        overwrite: bool = False,
    ) -> None:
        if spec.style is None:
            raise UsageError("no style: name the picture whose style is taken")
        if jobs is not None and jobs < 1:
            raise UsageError(f"jobs is {jobs}: give at least 1")
        self.items: Sequence[Item] = plan_items(images, out, format)
        self._style = spec.style
        self._spec = spec
        self._format = format
        self._jobs = jobs
        self._overwrite = overwrite
        make_folder(Path(out))
        check_writable(Path(out, f"impasto.{format}"), overwrite=True)

    def run(self, stopped: Callable[[], bool] = lambda: False) -> Generator[Outcome, None, None]:
        """Paint, and yield what became of each picture as soon as it is known.

        Where ``stopped`` tells so, or the generator is closed, paintings end after the evaluation under way and are
        not written; pictures without an outcome are those that a later run paints.

        Raises what the style, the weights, the preset or the backend raise, and `OutputError` for files that are there
        and of another job, before anything is painted. After that an `ImpastoError` is an outcome.
        """
        with open_stylizer(self._spec) as stylizer:
            # A style that cannot be read would fail every picture.
            read_image(self._style, stylizer.limits)
            style_digest = file_digest(Path(self._style), stylizer.limits)

            def identity(item: Item) -> str:
                return fingerprint(item.content, style_digest, stylizer, self._spec, self._format)

            todo = []
            for item in self.items:
                if self._is_present(item, identity):
                    yield Outcome(str(item.content), str(item.output), "present")
                else:
                    todo.append(item)
            if not todo:
                return
            workers = _Workers(_Pieces(self._spec, identity, self._write, self._jobs, stopped), stylizer, todo)
            try:
                yield from workers.outcomes()
            except KeyboardInterrupt:
                # Who is in such a hurry does not wait for the evaluations under way.
                workers.stop(wait=False)
                raise
            except BaseException:
                workers.stop()
                raise

    def _is_present(self, item: Item, identity: Callable[[Item], str]) -> bool:
        if not os.path.lexists(item.output):
            return False
        try:
            present = marked(item.output) == identity(item)
        except ImpastoError:
            present = False  # what is wrong with the picture is told in its turn
        if not present and not self._overwrite:
            raise OutputError(
                f"output {str(item.output)!r} exists and is of another job: choose another folder, or allow such files "
                "to be replaced with overwrite=True (--force)"
            )
        return present

    def _write(self, painting: Painting, item: Item, fingerprint: str) -> float:
        """Write a painting with the fingerprint of its job, and return its loss."""
        result = painting.result()
        write_image(
            item.output,
            result.image,
            result.alpha,
            quality=self._spec.quality,
            overwrite=self._overwrite,
            metadata=mark(fingerprint),
        )
        return result.loss["total"]


@dataclass(frozen=True)
class _Pieces:
    """What workers need of their batch."""

    spec: JobSpec
    identity: Callable[[Item], str]
    write: Callable[[Painting, Item, str], float]
    jobs: int | None
    stopped: Callable[[], bool]


class _Workers:
    """Threads that paint what is to be done, each with a stylizer of its own; the first has the one that is given."""

    def __init__(self, batch: _Pieces, stylizer: Stylizer, todo: Sequence[Item]) -> None:
        self._batch, self._first = batch, stylizer
        self._todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        for item in todo:
            self._todo.put(item)
        self._done: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        # One picture at a time is read, and waits for memory: what it takes meanwhile nobody has foretold. Who waits
        # here in turn rests.
        self._door = threading.Lock()
        shares = is_known(stylizer.backend)
        self._count = min(len(todo), batch.jobs or available_cpus()) if shares else 1
        self._limit = stylizer.limits.memory_bytes() if shares else None
        self._budget = Budget(self._limit)
        names = [f"impasto-{number}" for number in range(self._count)]
        # Daemons, so that a second Ctrl-C need not wait: what is written is written whole.
        self._threads = [threading.Thread(target=self._work, args=(n,), name=n, daemon=True) for n in names]

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Paint, and yield outcomes as they come; raise what a worker could not begin for."""
        for thread in self._threads:
            thread.start()
        working = len(self._threads)
        while working:
            outcome = self._done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                working -= 1
            else:
                yield outcome

    def stop(self, wait: bool = True) -> None:
        """End after the evaluations under way, and wait for that."""
        self._closed.set()
        for thread in self._threads:
            if wait and thread.is_alive():
                thread.join()

    def _work(self, name: str) -> None:
        try:
            with self._stylizer() as stylizer:
                try:
                    self._work_off(stylizer, name)
                finally:
                    # Before it is closed, which another does who needs the room.
                    self._budget.give_back(name)
        except BaseException as error:
            self._done.put(error)
        finally:
            self._done.put(None)

    def _work_off(self, stylizer: Stylizer, name: str) -> None:
        while not self._ends():
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                return
            outcome = self._outcome(stylizer, item, name)
            self._budget.rest(name, stylizer.close)
            if outcome is not None:
                self._done.put(outcome)

    def _stylizer(self) -> Stylizer:
        first, spec = self._first, self._batch.spec
        if self._count == 1:
            return first
        return Stylizer(
            first.preset,
            weights=first.weights,
            backend=first.backend.name,
            plan=spec.plan,
            precision=first.backend.precision,
            limits=replace(first.limits, memory=self._limit),
            threads=spec.threads or max(1, available_cpus() // self._count),
        )

    def _outcome(self, stylizer: Stylizer, item: Item, name: str) -> Outcome | None:
        """Paint one picture; None if it was stopped."""
        content, output = str(item.content), str(item.output)
        began = time.perf_counter()
        try:
            fingerprint = self._batch.identity(item)
            with self._door:
                painting = self._admitted(stylizer, content, name)
            for _ in painting:
                if self._ends():
                    painting.close()
                    return None
            loss = self._batch.write(painting, item, fingerprint)
            return Outcome(content, output, "painted", time.perf_counter() - began, loss)
        except ImpastoError as error:
            failure = error
        except MemoryError:
            failure = LimitError(f"picture {content!r}: out of memory; lower --jobs or --size")
        except Exception as error:
            _logger.exception("a defect of Impasto's at picture %r", content)
            failure = ImpastoError(f"a defect of Impasto's, please report it ({type(error).__name__}: {error})")
        return Outcome(content, output, "failed", time.perf_counter() - began, error=failure)

    def _admitted(self, stylizer: Stylizer, content: str, name: str) -> Painting:
        """Return the painting of a picture once there is memory for it."""
        job = read_pictures(self._batch.spec.changed({"content": content}), stylizer)
        if self._limit is not None and self._count > 1:
            found = fit(job, stylizer.backend, self._limit)
            foretold = found.forecast or forecast(found.job, stylizer.backend)
            self._budget.reserve(name, foretold.memory_bytes)
        return stylizer.painting(job)

    def _ends(self) -> bool:
        return self._closed.is_set() or self._batch.stopped()
