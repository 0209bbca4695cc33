"""Turns code that calls back into a generator that is asked, by a worker thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Stop(BaseException):
    """Unwinds the worker; not an `Exception`, so that the code in between does not handle it."""


def ask_back(work: Callable[[Callable[[Question], Answer]], None]) -> Generator[Question, Answer, None]:
    """Run ``work(ask)`` in a thread; yield each question it asks and return to it the answer that is sent.

    Either the thread runs or the generator's owner does, never both. What ``work`` raises is raised here. However the
    generator ends (also by ``close``, or by being collected), the thread is unwound and joined.
    """
    questions: SimpleQueue[Question | _End] = SimpleQueue()
    answers: SimpleQueue[_Reply[Answer] | None] = SimpleQueue()

    def ask(question: Question) -> Answer:
        questions.put(question)
        reply = answers.get()
        if reply is None:
            raise _Stop
        return reply.value

    def run() -> None:
        try:
            work(ask)
        except _Stop:
            return
        except BaseException as error:
            questions.put(_End(error))
        else:
            questions.put(_End(None))

    thread = Thread(target=run, name="impasto-solver", daemon=True)
    thread.start()
    try:
        while not isinstance(question := questions.get(), _End):
            answers.put(_Reply((yield question)))
        if question.error is not None:
            raise question.error
    finally:
        answers.put(None)
        thread.join()


class _Reply(Generic[Answer]):
    def __init__(self, value: Answer) -> None:
        self.value = value


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
