"""The demo of snapshots: a program is killed and goes on, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

import refault
from refault.errors import KernelError
from refault.sizes import format_size

from .reaction import begin, step
from .tally import Tally

__all__ = ["FULL", "QUICK", "Killed", "Simulation", "introduction", "kill_and_go_on", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How much is simulated."""

    side: int
    """Of the plate, in numbers of 8 bytes."""
    every: float
    """Seconds between two checkpoints."""
    saves: int
    """It is killed when so many checkpoints are committed."""


FULL: Final = Simulation(side=1024, every=1.0, saves=5)
QUICK: Final = Simulation(side=384, every=0.2, saves=3)


@dataclass(slots=True, kw_only=True)
class Killed:
    """What has happened."""

    killed_at: int = 0
    """The step that was done when the program was killed."""
    resumed: int = 0
    """The step of the checkpoint that it went on from."""
    steps: int = 0
    """With which it came to its end."""
    nbytes: int = 0
    written: list[int] = field(default_factory=list)
    """Bytes of each checkpoint's chunks."""
    stopped: list[float] = field(default_factory=list)
    """Seconds for which `save` kept the program from going on."""
    history: int = 0
    checked: int = 0
    wrong: int = 0
    damaged: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return (
            self.checked > 0
            and self.wrong == self.damaged == 0
            and 0 < self.resumed <= self.killed_at < self.steps
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self) | {"ok": self.ok}


def introduction(plan: Simulation) -> str:
    """What is going to happen, in plain words."""
    return (
        f"A reaction of two substances on a plate of {plan.side} x {plan.side}, in arrays of"
        f" refault; a checkpoint\nevery {plan.every:g} s while it runs. It is killed with SIGKILL,"
        " started again, and what it ends with is\ncompared with a run in plain numpy that nobody"
        " killed."
    )


def kill_and_go_on(plan: Simulation, directory: str, progress: Callable[[str], None]) -> Killed:
    """Run the simulation with a kill in the middle, and again undisturbed."""
    began = time.monotonic()
    found = Killed()
    with tempfile.TemporaryDirectory(prefix="refault-demo-", dir=directory) as folder:
        progress("running it with checkpoints")
        for said in _run(plan, folder, 0, found):
            found.killed_at = int(said.get("step", found.killed_at))
            if len(found.written) >= plan.saves:
                break
        found.steps = found.killed_at + max(10, found.killed_at // 2)
        progress(f"killed at step {found.killed_at}; starting it again")
        for said in _run(plan, folder, found.steps, found):
            found.resumed = int(said.get("resumed", found.resumed))
        progress("running it undisturbed, in plain numpy")
        u, v = np.zeros((plan.side, plan.side)), np.zeros((plan.side, plan.side))
        begin(u, v)
        for _ in range(found.steps):
            step(u, v)
        progress("comparing")
        with refault.Checkpoints(folder, create=False) as ck:
            _compare(ck, {"u": u, "v": v, "step": np.array(found.steps)}, found)
    found.seconds = time.monotonic() - began
    return found


def _compare(ck: refault.Checkpoints, expected: dict[str, Any], found: Killed) -> None:
    history = ck.history()
    found.history = len(history)
    found.damaged = sum(len(ck.verify(one).damage) for one in history)
    tally = Tally()
    loaded = ck.load()
    for name, array in expected.items():
        tally.compare(loaded[name].reshape(-1), array.reshape(-1))
    found.checked, found.wrong = tally.checked, tally.wrong


def _run(plan: Simulation, folder: str, steps: int, found: Killed) -> Iterator[dict[str, float]]:
    """Start the program and yield what it says; it is killed if one stops listening."""
    words = [folder, str(plan.side), str(steps), str(plan.every)]
    program = subprocess.Popen(
        [sys.executable, "-m", "refault.cli.demo.runner", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # One order of additions, however many threads there are.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert program.stdout is not None
    ended = False
    try:
        for line in program.stdout:
            said = json.loads(line)
            if "saved" in said:
                found.written.append(int(said["written"]))
                found.stopped.append(said["stopped"])
                found.nbytes = int(said["nbytes"])
            yield said
        ended = True
    finally:
        if not ended:
            program.send_signal(signal.SIGKILL)
        status = program.wait()
        program.stdout.close()
    if status:
        raise KernelError(
            f"the program ended with status {status}; its last words are above, and `refault"
            " doctor` says what is missing"
        )


def report(found: Killed) -> str:
    """What has happened, in plain words."""
    later = found.written[1:] or [0]
    lines = [
        f"killed at step {found.killed_at}, went on from the checkpoint of step {found.resumed}"
        f" to step {found.steps}",
        f"checkpoints           {found.history} of {format_size(found.nbytes)}, each whole",
        f"written, the first    {format_size(found.written[0])}",
        f"written, the others   {format_size(min(later))} to {format_size(max(later))}",
        f"stopped for, longest  {max(found.stopped) * 1e3:.1f} ms",
        f"bytes compared        {found.checked:,}",
        f"wrong bytes           {found.wrong:,}",
    ]
    return "\n".join(lines)
