"""Processes of the cluster as PID 1 of its namespace sees them: started, restarted when they die, reaped, orphans included."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

RESTART_DELAY = 0.2


@dataclass
class Component:
    """One supervised program."""

    argv: list[str]
    log: Path
    pid: int = 0
    wanted: bool = False
    restarts: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Starts components and restarts those that die once ``settled``; before that a death is an error."""

    def __init__(self, components: dict[str, Component]) -> None:
        self.components = components
        self.settled = False
        self._commands: dict[int, asyncio.Future[int]] = {}
        self._pending: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, name: str) -> None:
        """Start a component if it does not run."""
        component = self.components[name]
        component.wanted = True
        if not component.pid:
            component.gone.clear()
            component.pid = _spawn(component.argv, component.log)

    async def stop(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a component and wait until it is gone. It stays down until started."""
        component = self.components[name]
        component.wanted = False
        if component.pid:
            os.kill(component.pid, signal.SIGCONT)
            os.kill(component.pid, number)
            await component.gone.wait()

    def send(self, name: str, number: int) -> None:
        """Send a signal to a running component. One that ends it lets it be restarted."""
        if pid := self.components[name].pid:
            os.kill(pid, number)

    async def run(self, argv: list[str], log: Path) -> int:
        """Run a command to its end; its exit status."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._commands[_spawn(argv, log)] = future
        return await future

    def dead(self) -> list[str]:
        """Components that should run and do not."""
        return [name for name, component in self.components.items() if component.wanted and not component.pid]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if future := self._commands.pop(pid, None):
                future.set_result(os.waitstatus_to_exitcode(status))
            for name, component in self.components.items():
                if component.pid == pid:
                    component.pid = 0
                    component.gone.set()
                    if component.wanted and self.settled:
                        self._later(self._restart(name))

    def _later(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _restart(self, name: str) -> None:
        await asyncio.sleep(RESTART_DELAY)
        component = self.components[name]
        if component.wanted and not component.pid:
            component.restarts += 1
            self.start(name)


def _spawn(argv: list[str], log: Path) -> int:
    """A child with both outputs appended to ``log``. Not ``subprocess``, whose own waiting would race with the reaper."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsid=True)
