"""What all routes share: the model, the server's settings, and waiting for answers with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import anyio
import msgspec
from starlette.requests import Request

from nemo_steerlm.core.errors import SteerLMError, shown
from nemo_steerlm.core.label_support import LabelSupport, TaughtLabels
from nemo_steerlm.core.labels import Label
from nemo_steerlm.serving.errors import ClientGoneError, DrainingError, TimedOutError, UnknownModelError
from nemo_steerlm.serving.model import Delta, EngineFailedError, Generation, Model
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.remote_reader import RemoteReader
from nemo_steerlm.serving.tasks import cancel_and_wait

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one server, whatever its model."""

    name: str = "steerlm"
    """The model's name in ``/v1/models``."""
    defaults: Label = Label()
    """What requests that name no attributes are answered under, over the schema's own defaults."""
    max_body_bytes: int = 8 << 20
    request_timeout: float = 600.0
    """Seconds."""
    read_timeout: float = 60.0
    """Seconds in which a request's head must have come, and then its body."""
    max_connections: int = 1000
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False


class Service:
    """One served model."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.reader: Service | None = None
        """Serves the value model that reads for this steer model, if one process has both."""
        self.remote_reader: RemoteReader | None = None
        """Reads for this steer model if another server has the value model."""
        self.metrics = model.metrics
        support = model.info.support
        self.taught = TaughtLabels(model.info.attributes, support) if isinstance(support, LabelSupport) else None
        """Under which labels the model was taught; None where nobody counted."""
        self.prompts = Prompts(model.info, model.tokenizer, model.max_length, settings.defaults)
        self.started = int(time.time())
        self.draining = False
        self.in_flight = 0
        """Requests being answered."""
        self.large_bodies = anyio.CapacityLimiter(1)
        """Whose turn it is to have a large body read."""
        self.ending = False
        """Whether those that are still being answered are to end now."""
        self._enders: dict[object, Callable[[], None]] = {}

    @property
    def scores(self) -> bool:
        """Whether the model reads labels (a value model) rather than writing under them."""
        return self.model.info.kind == "value"

    @property
    def served(self) -> tuple[Service, ...]:
        """The models of this process."""
        return (self, self.reader) if self.reader else (self,)

    def named(self, name: str | None) -> Service:
        """The model that a request asks for; this one where it names none. Raises UnknownModelError."""
        for one in self.served:
            if name in (None, one.settings.name):
                return one
        names = " and ".join(one.settings.name for one in self.served)
        raise UnknownModelError(f"no such model: {shown(name)}; this server has {names}")

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True
        if self.reader:
            self.reader.drain()

    def end(self) -> None:
        """End what is still being answered, with DrainingError."""
        self.ending = True
        for ender in list(self._enders.values()):
            ender()
        if self.reader:
            self.reader.end()

    @contextlib.contextmanager
    def at_end(self, ender: Callable[[], None]) -> Iterator[None]:
        """``ender`` is called if the service ends while the block runs."""
        key = object()
        self._enders[key] = ender
        try:
            if self.ending:
                ender()
            yield
        finally:
            del self._enders[key]

    def draining_error(self) -> DrainingError:
        """What is said to those whose answers are not ready when the service ends."""
        return DrainingError("this server stopped before the answer was complete; ask again")

    def close(self) -> None:
        """End the engines' threads."""
        self.model.close()
        if self.reader:
            self.reader.close()

    def require_open(self, jobs: int) -> None:
        """Check that ``jobs`` more rows or conversations can be taken.

        Raises:
            DrainingError: If the server is stopping.
            QueueFullError: If its queue is full.
        """
        if self.draining:
            raise DrainingError("this server is stopping; ask another")
        self.model.require_room(jobs)

    async def merged(self, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Delta], None]:
        """Merge the steps of several answers as they come.

        Yields:
            The answer's number in ``generations``, and its step.

        Raises:
            TimedOutError: If the answers are not complete within the time limit.
            SteerLMError: The first error of an answer; the other answers are cancelled.
        """
        steps: asyncio.Queue[tuple[int, Delta | SteerLMError]] = asyncio.Queue()

        async def follow(index: int, generation: Generation) -> None:
            try:
                async for delta in self.model.stream(generation, len(generations)):
                    steps.put_nowait((index, delta))
            except SteerLMError as error:
                steps.put_nowait((index, error))
            except Exception:
                # Nothing else awaits this task: without a result its consumer would wait for the whole time limit.
                logger.exception("an answer failed")
                steps.put_nowait((index, EngineFailedError("the answer failed; see the server's log")))

        tasks = [asyncio.create_task(follow(i, g)) for i, g in enumerate(generations)]
        ending = self.at_end(lambda: steps.put_nowait((0, self.draining_error())))
        # Not wait_for: before Python 3.12 it may swallow a cancellation, and it costs a task per step.
        seconds = self.settings.request_timeout
        too_late = TimedOutError(f"no complete answer within {seconds:g} s")
        timer = asyncio.get_running_loop().call_later(seconds, steps.put_nowait, (0, too_late))
        try:
            with ending:
                open_answers = len(tasks)
                while open_answers:
                    index, step = await steps.get()
                    if isinstance(step, SteerLMError):
                        raise step
                    yield index, step
                    open_answers -= step.finish is not None
        finally:
            timer.cancel()
            await cancel_and_wait(tasks)

    async def within(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled if time runs out, the client hangs up or the service ends.

        Raises:
            TimedOutError: If the time limit passed.
            ClientGoneError: If the client hung up.
            DrainingError: If the service ended.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        ended = asyncio.Event()
        ending = asyncio.ensure_future(ended.wait())
        try:
            with self.at_end(ended.set):
                seconds = self.settings.request_timeout
                await asyncio.wait({task, gone, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if ended.is_set():
                raise self.draining_error()
            if gone.done():
                raise ClientGoneError("the client hung up")
            raise TimedOutError(f"no answer within {self.settings.request_timeout:g} s")
        finally:
            await cancel_and_wait((task, gone, ending))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
