"""The program that is killed: ``python -m refault.cli.demo.runner FOLDER SIDE STEPS SECONDS``.

It begins with the newest checkpoint if there is one, makes another one every few seconds,
and says on standard output, one JSON object a line, what it does.  With 0 steps it never ends.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import refault
from refault.errors import UsageError

from .reaction import begin, step

__all__ = ["main"]


def main(folder: str, side: int, steps: int, every: float) -> None:
    """Run the simulation to its end, and make a last checkpoint."""
    with refault.Checkpoints(folder) as ck:
        try:
            loaded = ck.load(mode="c")
        except UsageError:
            u, v, done = refault.zeros((side, side)), refault.zeros((side, side)), 0
            begin(u, v)
        else:
            u, v, done = loaded["u"], loaded["v"], int(loaded["step"])
            _say(resumed=done)
            del loaded
        saves: list[tuple[int, float, refault.Save]] = []
        due = time.monotonic() + every
        while done < steps or not steps:
            step(u, v)
            done += 1
            if time.monotonic() >= due or done == steps:
                due = time.monotonic() + every
                began = time.monotonic()
                save = ck.save({"u": u, "v": v, "step": np.array(done)}, message=f"step {done}")
                saves.append((done, time.monotonic() - began, save))
            _say(step=done)
            if saves and saves[0][2].done():
                _say_saved(*saves.pop(0))
        for left in saves:
            _say_saved(*left)


def _say_saved(step: int, stopped: float, save: refault.Save) -> None:
    result = save.result()
    _say(saved=step, stopped=stopped, written=result.written, nbytes=result.nbytes)


def _say(**what: float) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
