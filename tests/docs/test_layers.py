"""Imports only go down, and the pure parts stay pure.

Imports inside functions and under TYPE_CHECKING count as well: a layer that
needs another one's types depends on it.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

SRC = pathlib.Path(__file__).parents[2] / "src"

ALLOWED = {
    "errors": set[str](),
    "_version": set[str](),
    "lazy": set[str](),
    "sizes": {"errors"},
    "memory": {"errors"},
    "fault": {"memory", "errors"},
    "native": {"errors"},
    "stores": {"native", "fault", "memory", "sizes", "lazy", "errors"},
    "machine": {"native", "stores", "fault", "memory", "errors"},
    "wire": {"errors"},
    "pager": {"wire", "machine", "native", "stores", "fault", "memory", "errors"},
    "client": {"wire", "machine", "native", "stores", "sizes", "errors"},
    "checkpoints": {"client", "stores", "sizes", "errors"},
    # The conformance suite of stores opens arrays as users do.
    "testing": {"machine", "stores", "fault", "memory", "errors", ""},
    "cli": {
        "testing",
        "checkpoints",
        "client",
        "pager",
        "wire",
        "native",
        "machine",
        "stores",
        "fault",
        "memory",
        "sizes",
        "errors",
        "",
    },
    "__main__": {"cli"},
    # refault/__init__.py itself: the API, loaded when it is used.
    "": {"checkpoints", "client", "lazy", "errors"},
}
"""For each layer, the first name after `refault.`, what it may import besides itself."""

PURE = {"fault", "memory"}
IMPURE = {
    "asyncio",
    "ctypes",
    "datetime",
    "fcntl",
    "mmap",
    "numpy",
    "os",
    "random",
    "secrets",
    "select",
    "socket",
    "threading",
    "time",
}
WITH_NUMPY = ("checkpoints", "client", "cli", "testing", "stores.chunked")


def imports(source: str, module: str, *, package: bool) -> Iterator[tuple[int, str]]:
    """All names that `source`, the text of `module`, imports, absolute, with their lines."""
    parts = module.split(".")
    if not package:
        parts.pop()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """What `module` imports against the rules."""
    layer = layer_of(module)
    if layer not in ALLOWED:
        return [f"{module}: {layer!r} is not a layer; name it in ALLOWED"]
    wrong = []
    for line, name in imports(source, module, package=package):
        top = name.partition(".")[0]
        if top == "refault":
            target = layer_of(name)
            allowed = ALLOWED[layer] | {layer, "_version"}
            if target not in ALLOWED:
                # `from refault import zeros`: a name of refault/__init__.py.
                target = ""
            bad = target not in allowed
        else:
            bad = (layer in PURE and top in IMPURE) or (top == "numpy" and not uses_numpy(module))
        if bad:
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


def uses_numpy(module: str) -> bool:
    return f"{module}.".startswith(tuple(f"refault.{one}." for one in WITH_NUMPY))


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def gives_a_name(statement: ast.stmt) -> bool:
    """Whether a module with this statement has anything to offer."""
    if isinstance(statement, ast.ImportFrom):
        return statement.module != "__future__"
    return not isinstance(statement, ast.Expr)


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for path in sorted((SRC / "refault").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    path = MODULES[module]
    assert not violations(path.read_text(), module, package=path.stem == "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_offers(module: str) -> None:
    body = ast.parse(MODULES[module].read_text()).body
    names = {
        target.id
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names or not any(map(gives_a_name, body))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("refault.memory.bad", "import os"),
        ("refault.memory.bad", "import os.path as p"),
        ("refault.fault.bad", "from time import monotonic"),
        ("refault.fault.bad", "def f():\n    import numpy as np"),
        ("refault.memory.bad", "from refault.fault import handlers"),
        ("refault.memory.bad", "from ..fault.handlers import handle_mm_fault"),
        ("refault.memory.bad", "from .. import fault"),
        ("refault.fault.bad", "from refault import stores"),
        ("refault.wire.bad", "from refault.machine import uffd"),
        ("refault.client.bad", "import refault.pager.loop"),
        ("refault.client.bad", "from refault import zeros"),
        ("refault.pager.bad", "import refault"),
        ("refault.pager.bad", "from refault.client.region import Region"),
        ("refault.pager.bad", "import numpy"),
        ("refault.stores.bad", "import numpy"),
        ("refault.testing.bad", "from refault.cli import main"),
        ("refault.errors", "if TYPE_CHECKING:\n    from refault.wire import messages"),
        ("refault.newcomer", "x = 1"),
    ],
)
def test_the_rule_bites(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source", "package"),
    [
        ("refault.memory.good", "import heapq\nfrom refault.errors import UsageError", False),
        ("refault.fault.good", "from . import flags\nfrom ..memory.page import Page", False),
        ("refault.fault", "from .flags import FaultFlag\nfrom ..memory import page", True),
        ("refault.machine.good", "import os, mmap, ctypes\nfrom refault import stores", False),
        ("refault.stores.chunked.good", "import numpy", False),
        ("refault.client.good", "import numpy\nfrom refault.wire import messages", False),
        ("refault.cli.good", "import refault\nfrom refault import zeros", False),
    ],
)
def test_the_rule_lets_pass(module: str, source: str, package: bool) -> None:
    assert not violations(source, module, package=package)


@pytest.mark.parametrize(
    "module",
    ["refault", "refault.cli", "refault.pager.__main__", "refault.checkpoints.store"],
)
def test_import_is_light(module: str) -> None:
    """Nobody who needs no array waits for numpy; the pager starts in a moment."""
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {"numpy", "asyncio", "rich", "multiprocessing"}
