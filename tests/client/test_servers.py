"""How much each server is sent, and where a failed request goes next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy
from nemo_steerlm.client.servers import Server, ServerPool
from nemo_steerlm.core.errors import UnavailableError
from tests.annotation.labelling_server import Handler
from tests.annotation.running import QUICK, served


def with_pool(urls: list[str], use: Callable[[ServerPool], Awaitable[Any]], policy: RetryPolicy = QUICK, **fields: int) -> Any:
    async def run() -> Any:
        async with httpx.AsyncClient() as client, ServerPool(urls, client, policy, **fields) as pool:
            await pool.announcement()
            return await use(pool)

    return asyncio.run(run())


def test_the_limit_grows_by_one_a_round_of_successes_and_stops_at_the_most() -> None:
    async def use(pool: ServerPool) -> list[float]:
        async def succeed(server: Server) -> None:
            pass

        limits = []
        for _ in range(3):
            for _ in range(int(pool.servers[0].limit)):
                await pool.call(succeed)
            limits.append(pool.servers[0].limit)
        return limits

    with served(Handler) as url:
        limits = with_pool([url], use, max_in_flight=6)
    assert 4.8 < limits[0] < 5
    assert 5.5 < limits[1] < 6
    assert limits[2] == 6


def test_a_burst_of_refusals_halves_the_limit_once_and_costs_no_attempt() -> None:
    async def use(pool: ServerPool) -> tuple[float, list[str]]:
        together, refused = asyncio.Barrier(4) if hasattr(asyncio, "Barrier") else None, 0
        after: list[float] = []

        async def refuse_once(server: Server) -> str:
            nonlocal refused
            if refused < 4:
                refused += 1
                if together:
                    await together.wait()
                raise RequestFailed(Fault.BUSY, "429")
            after.append(server.limit)
            return "ok"

        results = await asyncio.gather(*(pool.call(refuse_once) for _ in range(4)))
        return after[0], list(results)

    with served(Handler) as url:
        limit, results = with_pool([url], use, RetryPolicy(attempts=1, wait_initial=0.002, wait_max=0.01))
    assert limit == 2.0
    assert results == ["ok"] * 4


def test_a_failed_request_goes_to_another_server_as_long_as_there_is_one() -> None:
    async def use(pool: ServerPool) -> list[str]:
        while not all(server.ready for server in pool.servers):
            await pool._changed(1.0)
        asked: list[str] = []

        async def fail(server: Server) -> None:
            asked.append(server.url)
            raise RequestFailed(Fault.ATTEMPT, "500")

        for _ in range(5):
            asked.clear()
            with pytest.raises(RequestFailed):
                await pool.call(fail)
            for server in pool.servers:
                # Undo the rest, which is not what this is about.
                server.failures = 0
            assert len(set(asked)) == len(asked) == 2
        return asked

    with served(Handler) as one, served(Handler) as other:
        with_pool([one, other], use, RetryPolicy(attempts=2, wait_initial=0.001, wait_max=0.01))


def test_a_request_that_is_wrong_is_final_and_no_blame_on_the_server() -> None:
    async def use(pool: ServerPool) -> tuple[int, float, int]:
        asked = 0

        async def refuse(server: Server) -> None:
            nonlocal asked
            asked += 1
            raise RequestFailed(Fault.REQUEST, "400")

        with pytest.raises(RequestFailed, match="400"):
            await pool.call(refuse)
        return asked, pool.servers[0].limit, pool.servers[0].failures

    with served(Handler) as url:
        assert with_pool([url], use) == (1, 4.0, 0)


def test_a_server_of_generate_alone_may_not_know_options() -> None:
    class NoOptions(Handler):
        def do_OPTIONS(self) -> None:  # noqa: N802  http.server looks for this name
            self.answer(501, {"message": "Unsupported method ('OPTIONS')"})

    async def announced(pool: ServerPool) -> bool:
        return (await pool.announcement()).info is None

    with served(NoOptions, info=None) as url:
        assert with_pool([url], announced)


def test_the_log_says_who_is_waited_for_and_why(package_log: list[str]) -> None:
    async def five_tries(url: str) -> None:
        async with httpx.AsyncClient() as client, ServerPool([url], client, QUICK) as pool:
            while pool.servers[0].failures < 5:
                await pool._changed(0.01)

    with served(Handler) as url:
        pass
    asyncio.run(five_tries(url))
    assert len(package_log) == 1, "once in a while, not at every try"
    assert package_log[0].startswith(f"waiting for {url}: ConnectError")


def test_patience_ends_with_what_each_server_last_said() -> None:
    async def never(pool: ServerPool) -> None:
        raise AssertionError("nobody answers there")

    with served(Handler) as url:
        pass
    with pytest.raises(UnavailableError, match=r"no server gave an answer for 0\.3 s"):
        with_pool([url], never, RetryPolicy(patience=0.3, wait_initial=0.002, wait_max=0.01))
