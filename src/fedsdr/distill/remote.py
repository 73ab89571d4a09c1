"""Drafts from an endpoint, many requests at a time. Each answer is stored as it comes.

One request goes out first, alone: a wrong address, model or key is found out before many do. What
fails is tried again, each time after a longer wait, unless nothing will help. An endpoint counts as
dead when as many records in a row as are asked for at a time have used up their tries.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from fedsdr.data.render import messages_of, render_prompt
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.endpoint import Line, Unanswered
from fedsdr.distill.engine import Asked
from fedsdr.distill.generate import Progress, Sampling
from fedsdr.distill.selection import Draft
from fedsdr.errors import EndpointError
from fedsdr.model.base import BaseModel
from fedsdr.model.speech import GUARD
from fedsdr.recipe.settings import Endpoint
from fedsdr.types import Example

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between tries, where the server names none
WORTHLESS = 5  # first answers without a text, after which the fault is not the records'
NAMED = 5  # examples in a message

Task = tuple[Asked, Mapping[str, Any]]  # with the request's body
Result = Draft | Unanswered | None  # None: of a thread that failed


@dataclass(frozen=True, slots=True)
class Remote:
    """`rendered` makes a prompt for the protocol `completions`, where the server has no
    template."""

    endpoint: Endpoint
    sampling: Sampling
    rendered: Callable[[Example], str | list[int]] | None = None
    template: str = ""
    note: Callable[[str], None] = lambda text: None

    @property
    def address(self) -> Sequence[str]:
        """Not the URL: the same model may answer from elsewhere tomorrow."""
        endpoint = self.endpoint
        return ["endpoint", endpoint.protocol, endpoint.model, endpoint.revision, self.template]

    @property
    def seeding(self) -> Sequence[str]:
        return self.address

    def write(self, asked: Sequence[Asked], drafts: Drafts, progress: Progress) -> None:
        missing = [request for request in asked if request.key not in drafts]
        once = {request.key: request for request in missing}  # twins are asked for once
        if once:
            asking = _Asking(
                remote=self, asked=list(once.values()), drafts=drafts, progress=progress
            )
            try:
                asking.all()
            finally:
                if any(line.renamed for line in asking.lines):
                    # Under which name, it could say anything.
                    self.note(
                        f"the endpoint answers as another model than {self.endpoint.model!r}; is "
                        f"it the one that is meant? {self.endpoint.url}/models lists what it has"
                    )
        progress(len(missing) - len(once))

    def body(self, request: Asked) -> dict[str, Any]:
        chosen = self.sampling
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": chosen.max_new_tokens,
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "seed": request.seed % 2**31,  # what every server takes
            "n": 1,
            "stream": False,
        }
        if chosen.top_k:  # not of the protocol, but known to the servers that can do it
            body["top_k"] = chosen.top_k
        if self.rendered is None:
            return body | {"messages": messages_of(request.prompt)}
        return body | {"prompt": self.rendered(request.prompt)}


def completion_prompt(base: BaseModel) -> Callable[[Example], str | list[int]]:
    """Prompts by the base's chat template: as text, but as tokens, which the protocol knows too,
    where the record says what a server would read as a special token."""

    def rendered(example: Example) -> str | list[int]:
        text = base.chat(messages_of(example), opened=True)
        return render_prompt(base, example) if GUARD in text else text

    return rendered


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One job of many requests; this thread stores, the others ask."""

    remote: Remote
    asked: Sequence[Asked]
    drafts: Drafts
    progress: Progress
    tasks: queue.SimpleQueue[Task | None] = field(
        default_factory=lambda: queue.SimpleQueue[Task | None]()
    )
    results: queue.SimpleQueue[tuple[Asked, Result]] = field(
        default_factory=lambda: queue.SimpleQueue[tuple[Asked, Result]]()
    )
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    lines: list[Line] = field(default_factory=lambda: list[Line]())
    answers: int = 0  # so far; guarded by the lock, like the next
    not_before: float = 0.0  # when the server wants to be asked again

    def all(self) -> None:
        api_key = self.remote.endpoint.key()
        many = min(self.remote.endpoint.concurrency, len(self.asked))
        self.lines = [Line(self.remote.endpoint, api_key) for _ in range(many)]
        for line in self.lines:
            # Daemons: whoever stops the program need not wait for answers.
            threading.Thread(target=self._work, args=(line,), daemon=True).start()
        try:
            missing = self._collect(many)
        finally:
            self.over.set()
            for line in self.lines:
                self.tasks.put(None)
                line.cut()
        if missing:
            named = ", ".join(repr(request.example.id) for request, _ in missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise self._error(
                f"no rewrite of {len(missing)} of {len(self.asked)} records, the last time for "
                f"{missing[-1][1].why}; these are the examples {named}{more}. All others are "
                "stored, and the same command asks for these again: shorten or drop what is refused"
            )

    def _collect(self, many: int) -> list[tuple[Asked, Unanswered]]:
        """Store what comes; what does not is told at the end, when all others are there."""
        waiting, under_way, in_vain = deque(self.asked), 0, 0
        missing, empty = list[tuple[Asked, Unanswered]](), dict[str, Draft]()
        useful, stopped = False, ""
        while waiting or under_way:
            while waiting and under_way < (many if useful else 1):
                request = waiting.popleft()
                self.tasks.put((request, self.remote.body(request)))
                under_way += 1
            arrived = [self.results.get()]
            while not self.results.empty():
                arrived.append(self.results.get())
            under_way -= len(arrived)
            made = {request.key: got for request, got in arrived if isinstance(got, Draft)}
            useful = useful or any(draft.text for draft in made.values())
            if not useful:
                empty |= made
            elif made or empty:
                self.drafts.add(empty | made)
                self.progress(len(empty | made))
                empty = {}
            for request, got in arrived:
                if got is None:
                    raise RuntimeError("a thread that asks has failed; its traceback stands above")
                if isinstance(got, Unanswered):
                    missing.append((request, got))
                    in_vain += got.then == "again"
                    if got.then in ("down", "stop"):
                        raise self._stopped(got.why)
                else:
                    in_vain = 0
            if in_vain and (not useful or in_vain >= max(2, many)):
                # What is on its way is waited for: somebody has paid for it.
                stopped = stopped or f"no answer to use: {missing[-1][1].why}"
                waiting.clear()
            if not useful and (worthless := len(empty) + len(missing)) >= WORTHLESS:
                why = missing[-1][1].why if missing else "no text in them"
                raise self._stopped(f"its first {worthless} answers were of no use: {why}")
        if stopped:
            raise self._stopped(stopped)
        self.drafts.add(empty)
        self.progress(len(empty))
        return missing

    def _work(self, line: Line) -> None:
        while (task := self.tasks.get()) is not None:
            result: Result = None
            try:
                result = self._answered(line, *task)
            finally:
                self.results.put((task[0], result))
        line.close()

    def _answered(self, line: Line, request: Asked, body: Mapping[str, Any]) -> Draft | Unanswered:
        tries, since, jitter = 0, self.answers, Random(request.seed)
        while True:
            self.over.wait(max(0.0, self.not_before - time.monotonic()))
            try:
                draft = line.ask(body)
            except Unanswered as problem:
                if problem.then in ("row", "stop"):
                    return problem
                if problem.then == "busy" and self.answers > since:
                    tries, since = 0, self.answers  # a queue in which others are served
                tries += 1
                down = problem.then == "down" and not self.answers
                if down or tries > self.remote.endpoint.retries or self.over.is_set():
                    return Unanswered(problem.why, "down" if down else "again")
                self._wait(problem.wait, tries, jitter)
            else:
                with self.lock:
                    self.answers += 1
                return draft

    def _wait(self, server_wait: float | None, tries: int, jitter: Random) -> None:
        if server_wait is None:
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** max(0, tries - 1))
            self.over.wait(wait * (0.5 + 0.5 * jitter.random()))
            return
        with self.lock:
            self.not_before = max(self.not_before, time.monotonic() + server_wait)

    def _stopped(self, why: str) -> EndpointError:
        end = "" if why.endswith(("?", ".")) else "."
        return self._error(
            f"{why}{end} What it answered before is stored; the same command goes on where it "
            "stopped"
        )

    def _error(self, what: str) -> EndpointError:
        return EndpointError(f"endpoint {self.remote.endpoint.url}: {what}")
