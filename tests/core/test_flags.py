"""The words of the protocol have the kernel's values and the mail's meaning (I1..I4)."""

from __future__ import annotations

import pytest

from refault.fault import flags as module
from refault.fault.flags import (
    FAULT_FLAG_DEFAULT,
    KERNEL_ONLY,
    RETRY_COMBINATIONS,
    FaultFlag,
    fault_flag_allow_retry_first,
    illegal_flags,
    retry_combination,
)
from refault.fault.results import VM_FAULT_ERROR, VmFault

MAIL = {
    "WRITE": 0x01,
    "MKWRITE": 0x02,
    "ALLOW_RETRY": 0x04,
    "RETRY_NOWAIT": 0x08,
    "KILLABLE": 0x10,
    "TRIED": 0x20,
    "USER": 0x40,
    "REMOTE": 0x80,
    "INSTRUCTION": 0x100,
}
MERGED = {"INTERRUPTIBLE": 0x200, "DEFAULT": 0x4 | 0x10 | 0x200}
ALL = range(1 << 13)
"""All that the kernel knows, also UNSHARE 0x400, ORIG_PTE_VALID 0x800 and VMA_LOCK 0x1000."""


@pytest.mark.parametrize(("name", "value"), [*MAIL.items(), *MERGED.items()])
def test_values_are_the_kernel_s(name: str, value: int) -> None:
    assert FaultFlag[name] == value
    assert getattr(module, f"FAULT_FLAG_{name}") == value


def test_there_are_no_others() -> None:
    assert {flag.name for flag in FaultFlag} == {*MAIL, "INTERRUPTIBLE"}
    numbers = {name for name in dir(module) if name.startswith("FAULT_FLAG_")}
    assert numbers == {f"FAULT_FLAG_{name}" for name in (*MAIL, *MERGED)}
    assert FAULT_FLAG_DEFAULT == 0x214


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OOM", 0x1),
        ("SIGBUS", 0x2),
        ("MAJOR", 0x4),
        ("HWPOISON", 0x10),
        ("HWPOISON_LARGE", 0x20),
        ("SIGSEGV", 0x40),
        ("NOPAGE", 0x100),
        ("LOCKED", 0x200),
        ("RETRY", 0x400),
        ("FALLBACK", 0x800),
        ("DONE_COW", 0x1000),
        ("NEEDDSYNC", 0x2000),
        ("COMPLETED", 0x4000),
        ("ERROR", 0x1 | 0x2 | 0x40 | 0x10 | 0x20 | 0x800),
    ],
)
def test_results_are_the_kernel_s(name: str, value: int) -> None:
    from refault.fault import results

    assert VmFault[name] == value
    assert getattr(results, f"VM_FAULT_{name}", value) == value


def test_error_is_neither_retry_nor_done() -> None:
    good = VmFault.MAJOR | VmFault.RETRY | VmFault.COMPLETED | VmFault.NOPAGE | VmFault.LOCKED
    assert not good & VM_FAULT_ERROR


def test_combinations_are_the_mail_s() -> None:
    rows = [(row.letter, row.allow_retry, row.tried, row.legal) for row in RETRY_COMBINATIONS]
    assert rows == [
        ("a", True, False, True),
        ("b", True, True, True),
        ("c", False, False, True),
        ("", False, True, False),
    ]


def test_every_combination_has_its_row() -> None:
    for flags in ALL:
        row = retry_combination(flags)
        assert row.allow_retry == bool(flags & FaultFlag.ALLOW_RETRY)
        assert row.tried == bool(flags & FaultFlag.TRIED)
        assert fault_flag_allow_retry_first(flags) == (row.letter == "a")
        # I1 is what the table calls forbidden.
        assert row.legal == (not (illegal_flags(flags) or "").startswith("I1"))


def test_illegal_flags() -> None:
    for flags in ALL:
        broken = {
            "I1": flags & 0x20 and not flags & 0x4,
            "I2": flags & 0x400,
            "I3": flags & 0x1000,
            "I4": flags & 0x8 and not flags & 0x4,
        }
        said = illegal_flags(flags)
        if any(broken.values()):
            assert said is not None
            assert broken[said.partition(":")[0]]
        else:
            assert said is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (FaultFlag.TRIED, "I1: TRIED without ALLOW_RETRY"),
        (FaultFlag.RETRY_NOWAIT, "I4: RETRY_NOWAIT without ALLOW_RETRY"),
        (FaultFlag.DEFAULT | 0x400, f"I2: {KERNEL_ONLY['I2'][1]}"),
        (FaultFlag.DEFAULT | 0x1000, f"I3: {KERNEL_ONLY['I3'][1]}"),
    ],
)
def test_what_is_said_of_illegal_flags(flags: int, said: str) -> None:
    assert illegal_flags(flags) == said


def test_flags_of_the_kernel_alone_have_the_kernel_s_values() -> None:
    assert {rule: bit for rule, (bit, _) in KERNEL_ONLY.items()} == {"I2": 0x400, "I3": 0x1000}
