"""What all routes share: the model, the server's settings, and how a request waits for its answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.serving.model import Delta, EngineFailedError, Generation, Model
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.remote_reader import RemoteReader
from nemo_steerlm.serving.tasks import cancel_and_wait

logger = logging.getLogger(__name__)
T = TypeVar("T")


class TimedOutError(SteerLMError):
    """The answer took longer than the server lets a request take."""

    code = "timeout"


class DrainingError(SteerLMError):
    """The server is about to stop and takes no more requests."""

    code = "draining"


class ClientGoneError(SteerLMError):
    """The client hung up; nobody reads what is answered."""

    code = "client_gone"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one server behaves, whatever it serves."""

    name: str = "steerlm"
    """The model's name in ``/v1/models``."""
    defaults: Label = Label()
    """What requests that name no attributes are answered under, over the schema's own defaults."""
    max_body_bytes: int = 8 << 20
    request_timeout: float = 600.0
    """Seconds."""
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False


class Service:
    """One model, being served."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.reader: Service | None = None
        """Serves the value model that reads for this steer model, where one process has both."""
        self.remote_reader: RemoteReader | None = None
        """Reads for this steer model where another server has the value model."""
        self.metrics = model.metrics
        self.prompts = Prompts(model.info, model.tokenizer, model.max_length, settings.defaults)
        self.started = int(time.time())
        self.draining = False
        self.in_flight = 0
        """Requests being answered."""

    @property
    def scores(self) -> bool:
        """Whether the model reads labels (a value model) rather than writing under them."""
        return self.model.info.kind == "value"

    def drain(self) -> None:
        """Take no more requests."""
        self.draining = True
        if self.reader:
            self.reader.drain()

    def close(self) -> None:
        """End the engines' threads."""
        self.model.close()
        if self.reader:
            self.reader.close()

    def require_open(self, jobs: int) -> None:
        """Raise DrainingError or QueueFullError where ``jobs`` more cannot be taken."""
        if self.draining:
            raise DrainingError("this server is stopping; ask another")
        self.model.require_room(jobs)

    async def merged(self, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Delta], None]:
        """Steps of several answers as they come, each with its answer's number."""
        steps: asyncio.Queue[tuple[int, Delta | SteerLMError]] = asyncio.Queue()

        async def follow(index: int, generation: Generation) -> None:
            try:
                async for delta in self.model.stream(generation, len(generations)):
                    steps.put_nowait((index, delta))
            except SteerLMError as error:
                steps.put_nowait((index, error))
            except Exception:
                # Nobody else looks at this task: whoever waits for its steps would wait until the request's time is up.
                logger.exception("an answer failed")
                steps.put_nowait((index, EngineFailedError("the answer failed; see the server's log")))

        tasks = [asyncio.create_task(follow(i, g)) for i, g in enumerate(generations)]
        # Not wait_for: before Python 3.12 it may swallow a cancellation, and it costs a task a step.
        seconds = self.settings.request_timeout
        too_late = TimedOutError(f"no complete answer within {seconds:g} s")
        timer = asyncio.get_running_loop().call_later(seconds, steps.put_nowait, (0, too_late))
        try:
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
        """The result of ``work``, which is cancelled when time is up or the client hangs up. Raises TimedOutError, ClientGoneError."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=self.settings.request_timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGoneError("the client hung up")
            raise TimedOutError(f"no answer within {self.settings.request_timeout:g} s")
        finally:
            await cancel_and_wait((task, gone))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
