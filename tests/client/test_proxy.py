"""Labels through a proxy that delays, cuts, tears and corrupts answers, and the bar that shows how far a run is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import subprocess
import threading
from pathlib import Path

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.client.retry import RetryPolicy
from tests.annotation.labelling_server import Handler
from tests.annotation.running import CLIENT_ENV, client_command, expected, options, served, write_conversations


class Proxy:
    """Passes TCP connections on. A seeded share of what comes back is late, cut off, in single bytes, or has a byte changed."""

    def __init__(self, url: str) -> None:
        self._behind = int(url.rsplit(":", 1)[1])
        self._chance = random.Random(4)
        self.done = dict.fromkeys(("delay", "cut", "tear", "corrupt"), 0)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            fault = self._chance.choice([*self.done]) if self._chance.random() < 0.3 else None
            if fault:
                self.done[fault] += 1
            if fault == "delay":
                await asyncio.sleep(self._chance.random() * 0.2)
            at = self._chance.randrange(len(data))
            if fault == "corrupt":
                data = data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]
            for piece in [data[:at]] if fault == "cut" else [bytes([b]) for b in data] if fault == "tear" else [data]:
                writer.write(piece)
                await writer.drain()
            if fault == "cut":
                return

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forward = await asyncio.open_connection("127.0.0.1", self._behind)

        async def ask() -> None:
            while data := await reader.read(65536):
                forward.write(data)
                await forward.drain()

        asking = asyncio.create_task(ask())
        with contextlib.suppress(OSError):
            await self._answer(back, writer)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        forward.close()
        writer.close()

    @contextlib.contextmanager
    def running(self):
        started, stop, address = threading.Event(), asyncio.Event(), []
        loops = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
            address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            started.set()
            await stop.wait()
            server.close()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        assert started.wait(20)
        try:
            yield address[0]
        finally:
            loops[0].call_soon_threadsafe(stop.set)
            thread.join()


def test_what_a_proxy_does_to_answers_costs_no_record_and_changes_no_label(tmp_path: Path) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 150), tmp_path / "out.jsonl"
    with served(Handler) as url:
        proxy = Proxy(url)
        with proxy.running() as through:
            policy = RetryPolicy(attempts=20, timeout=5, patience=60, wait_initial=0.002, wait_max=0.05)
            assert annotate(source, output, [through], options(policy=policy)).complete
    assert all(count > 5 for count in proxy.done.values()), proxy.done
    assert output.read_text(encoding="utf-8") == expected(source)


def test_a_terminal_sees_records_per_second_and_the_time_left(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "in.jsonl", 60)
    ours, theirs = pty.openpty()
    with served(Handler) as url:
        process = subprocess.Popen(
            client_command(source, tmp_path / "out.jsonl", "--server", url),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=CLIENT_ENV | {"TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how the other end says that it is closed
            while data := os.read(ours, 4096):
                shown += data
        assert process.wait(60) == 0
    os.close(ours)
    assert b"60/60" in shown
    assert b"records/s" in shown
    assert b"0:00:00" in shown
