"""Nothing lost, nothing twice: clients and servers killed at any moment, and a disk that is full."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import multiprocessing.process
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.client.retry import RetryPolicy
from nemo_steerlm.core.errors import SteerLMError
from tests.annotation.labelling_server import Handler
from tests.annotation.running import CLIENT_ENV, client_command, expected, options, served, served_by_process, write_conversations


class Counting(Handler):
    """Counts how often each record is asked for."""

    asked: list[str] = []

    def reply(self, body, answer):
        self.asked.extend(record["conversations"][0]["value"] for record in body["conversations"])
        return 200, answer(body)


def test_killed_at_any_byte_of_the_journal_it_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    """A kill leaves the journal cut somewhere: each of 120 cuts is continued, and what was in it is not asked for again."""
    source, output, journal = write_conversations(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"

    class Never(Exception):  # noqa: N818
        pass

    def stop_at_end(done: int, total: int) -> None:
        if done == total:
            raise Never

    wanted = expected(source)
    with served(Counting) as url:
        with pytest.raises(Never):
            annotate(source, output, [url], options(), progress=stop_at_end)
        whole = journal.read_bytes()
        chance = random.Random(11)
        cuts = [0, len(whole), *sorted(chance.sample(range(1, len(whole)), 118))]
        for size in cuts:
            journal.write_bytes(whole[:size])
            kept = max(0, whole[:size].count(b"\n") - 1)
            Counting.asked.clear()
            summary = annotate(source, output, [url], options())
            assert output.read_text(encoding="utf-8") == wanted
            assert (summary.resumed, len(Counting.asked), len(set(Counting.asked))) == (kept, 6 - kept, 6 - kept)


@contextlib.contextmanager
def client(*arguments: str | Path):
    process = subprocess.Popen(client_command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLIENT_ENV)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_lines(process: subprocess.Popen[str], journal: Path, lines: int) -> None:
    """Until the journal has so many lines, or the process has ended."""
    until = time.monotonic() + 60
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < lines):
        assert time.monotonic() < until
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)


class Slow(Handler):
    """Gives answers one at a time, so that there is time to kill in."""

    turn = threading.Semaphore(2)

    def reply(self, body, answer):
        with self.turn:
            threading.Event().wait(0.004)
            return 200, answer(body)


class SlowAndCounting(Slow):
    """Numbers of the records that it was asked for."""

    asked: list[int] = []

    def reply(self, body, answer):
        self.asked.extend(int(record["conversations"][0]["value"].split()[1].split(".")[0]) for record in body["conversations"])
        return super().reply(body, answer)


FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["nemo_steerlm.annotation.annotate"])
"""Processes that need not import all anew."""

Client = subprocess.Popen | multiprocessing.process.BaseProcess


def ended(process: Client, seconds: float) -> int | None:
    """The exit code of ``process``, if it has one within ``seconds``."""
    if isinstance(process, subprocess.Popen):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode
    process.join(seconds)
    return process.exitcode


class Moments:
    """When to kill: some time after the start, after some more labels, or while the output is written."""

    def __init__(self, output: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.output, self.journal = output, Path(f"{output}.journal")

    def wait(self, process: Client) -> None:
        """Until the next one, or until the process has ended."""
        kind = self.chance.choice(("time", "time", "labels", "labels", "labels", "labels", "writing"))
        if kind == "time":
            ended(process, self.chance.random() * 0.4)
            return
        until, wanted = time.monotonic() + 60, len(self.labelled()) + self.chance.randrange(1, 12)
        while ended(process, 0.002) is None:
            assert time.monotonic() < until
            if any(self.output.parent.glob(".out.jsonl.*.tmp")) if kind == "writing" else len(self.labelled()) >= wanted:
                return

    def labelled(self) -> list[int]:
        """Positions of the records in the journal, as often as they are there. A torn last line is none."""
        try:
            lines = self.journal.read_bytes().splitlines(keepends=True)[1:]
        except FileNotFoundError:
            return []
        return [json.loads(line[9:])["at"] for line in lines if line.endswith(b"\n")]


@contextlib.contextmanager
def started(source: Path, output: Path, url: str, *, command: bool):
    """A client process: the command line, or the function that it calls in a process that was forked."""
    if command:
        with client(source, output, "--server", url) as process:
            yield process
        return
    forked = FORKED.Process(target=annotate, args=(source, output, [url]))
    forked.start()
    try:
        yield forked
    finally:
        forked.kill()
        forked.join()


@pytest.mark.slow
def test_killed_at_a_hundred_moments_it_ends_with_every_record_once(tmp_path: Path) -> None:
    """One file, one client after another. Where one ends before it is killed, its output is looked at and the file is labelled anew."""
    source, output = write_conversations(tmp_path / "in.jsonl", 150), tmp_path / "out.jsonl"
    moments, wanted, codes = Moments(output, seed=3), expected(source), collections.Counter[int]()

    def run(url: str, *, stop: bool) -> int:
        kept = set(moments.labelled())
        SlowAndCounting.asked.clear()
        with started(source, output, url, command=codes.total() % 10 == 0) as process:
            if stop:
                moments.wait(process)
                process.kill()
            code = ended(process, 60)
        assert code is not None
        assert not kept & set(SlowAndCounting.asked), "what is in the journal is not asked for again"
        if code == 0:
            assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"], "what killed clients left is gone"
        if output.exists():  # also where the kill came between the last write and the end
            assert output.read_text(encoding="utf-8") == wanted
            output.unlink()
        else:
            assert kept <= set(moments.labelled()), "the labels of the last run are kept"
        assert max(collections.Counter(moments.labelled()).values(), default=1) == 1
        return code

    with served(SlowAndCounting) as url:
        while codes[-signal.SIGKILL] < 100:
            codes[run(url, stop=True)] += 1
        assert run(url, stop=False) == 0
    assert set(codes) <= {0, -signal.SIGKILL}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_code_and_a_rerun_goes_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    with served(Slow) as url:
        with client(source, output, "--server", url) as process:
            wait_for_lines(process, Path(f"{output}.journal"), 20)
            process.send_signal(number)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == code
            assert "the same command goes on" in errors
            assert "Traceback" not in errors
        assert not output.exists()
        assert annotate(source, output, [url], options()).resumed >= 19
    assert output.read_text(encoding="utf-8") == expected(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.slow
def test_servers_killed_and_restarted_at_random_cost_nothing(tmp_path: Path) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 900), tmp_path / "out.jsonl"
    chance, ended = random.Random(8), threading.Event()
    steps: list[int] = [0]
    kills = 0

    def report(finished: int, _total: int) -> None:
        steps[0] = finished

    policy = RetryPolicy(attempts=12, timeout=5, patience=60, wait_initial=0.01, wait_max=0.2)
    failure: list[Exception] = []

    def run(urls: list[str]) -> None:
        try:
            assert annotate(source, output, urls, options(policy=policy), progress=report).complete
        except (SteerLMError, AssertionError) as error:
            failure.append(error)
        finally:
            ended.set()

    with contextlib.ExitStack() as stack:
        ports, running = [], []
        for _ in range(2):
            process, url = stack.enter_context(served_by_process("--scores"))
            running.append(process)
            ports.append(url.rsplit(":", 1)[1])
        labeller = threading.Thread(target=run, args=([f"http://127.0.0.1:{port}" for port in ports],))
        labeller.start()
        while kills < 6 and not ended.is_set():
            mark = steps[0] + chance.randrange(20, 120)
            while steps[0] < mark and not ended.wait(0.005):
                pass
            which = chance.randrange(2)
            running[which].kill()
            running[which].wait()
            kills += 1
            running[which], _ = stack.enter_context(served_by_process("--scores", "--port", ports[which]))
        labeller.join(90)
    assert not failure
    assert kills >= 4
    assert output.read_text(encoding="utf-8") == expected(source)


def test_a_full_disk_ends_it_with_75_and_room_lets_it_go_on(tmp_path: Path) -> None:
    source, output = write_conversations(tmp_path / "in.jsonl", 120), tmp_path / "out.jsonl"
    with served(Handler) as url:
        for room in (4_000, 20_000):  # the journal does not fit; the journal fits and the output does not
            done = subprocess.run(
                client_command(source, output, "--server", url),
                capture_output=True,
                text=True,
                env=CLIENT_ENV,
                preexec_fn=lambda room=room: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
                check=False,
            )
            assert (done.returncode, done.stdout) == (75, "")
            assert "cannot be written: File too large; make room and run the same command again" in done.stderr
            assert "Traceback" not in done.stderr
            assert not output.exists()
        summary = annotate(source, output, [url], options())
        assert summary.resumed > 20
    assert output.read_text(encoding="utf-8") == expected(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_disk_without_room_ends_it_with_75_and_room_lets_it_go_on(tmp_path: Path) -> None:
    """A file system of 16 KB, in a mount namespace of its own; then it gets larger."""
    source, disk = write_conversations(tmp_path / "in.jsonl", 120), tmp_path / "disk"
    disk.mkdir()
    script = f"""
        mount -t tmpfs -o size=16k none {disk} || exit 99
        "$@"; code=$?
        [ $code = 75 ] && [ ! -e {disk}/out.jsonl ] || exit 98
        mount -o remount,size=4m none {disk}
        "$@" && cp {disk}/out.jsonl {tmp_path}
    """
    with served(Counting) as url:
        Counting.asked.clear()
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *client_command(source, disk / "out.jsonl", "--server", url)]
        done = subprocess.run(command, capture_output=True, text=True, env=CLIENT_ENV, check=False)
    if done.returncode in (1, 99, 127):
        pytest.skip(f"no file system of our own here: {done.stderr.strip()}")
    assert done.returncode == 0, done
    assert "cannot be written: No space left on device; make room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == expected(source)
    assert len(Counting.asked) < 200, "the second run asks for what the first did not get onto the disk"
