"""`refault explain`: what it says is what the fault path does."""

from __future__ import annotations

import json

import pytest

from refault import cli
from refault.cli import explain, situations
from refault.cli.explain import explanation, meanings, parse_flags
from refault.errors import UsageError
from refault.fault.flags import FAULT_FLAG_DEFAULT, RETRY_COMBINATIONS, FaultFlag, illegal_flags
from refault.fault.locks import PAGE_LOCK_RULES
from refault.fault.results import VmFault

FIRST = FAULT_FLAG_DEFAULT | FaultFlag.USER


def said(flags: int) -> dict[str, dict]:
    return {entry["situation"]: entry for entry in explanation(flags)["situations"]}


def output(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert cli.main(["explain", *words]) == status
    return capsys.readouterr().out


# -- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["WRITE"], 0x1),
        (["write", "Allow_Retry"], 0x5),
        (["FAULT_FLAG_TRIED", "fault_flag_write"], 0x21),
        (["DEFAULT"], 0x214),
        (["0x214"], 0x214),
        (["0x4", "TRIED"], 0x24),
        (["32"], 0x20),
        (["WRITE|ALLOW_RETRY,TRIED"], 0x25),
        (["WRITE", "|", "TRIED"], 0x21),
        (["UNSHARE"], 0x400),
        (["VMA_LOCK"], 0x1000),
        (["0"], 0),
    ],
)
def test_flags_are_understood(words: list[str], flags: int) -> None:
    assert parse_flags(words) == flags


@pytest.mark.parametrize(
    ("word", "hint"),
    [("WIRTE", "did you mean WRITE"), ("xyzzy", "lists them all"), ("-4", "lists them all")],
)
def test_what_is_no_flag(word: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse_flags([word])


def test_wrong_word_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "wirte"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- without flags -------------------------------------------------------------------------


def test_every_flag_is_listed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys).splitlines()
    for name, flag in FaultFlag.__members__.items():
        (line,) = [line for line in lines if line.split()[1:2] == [name] and line[:2] == "0x"]
        assert line.split()[0] == f"{int(flag):#05x}"
        assert len(line.split()) > 4
    for row in RETRY_COMBINATIONS:
        assert any(row.meaning in line for line in lines)
    for rule in PAGE_LOCK_RULES:
        assert any(rule.when in line for line in lines)


def test_meanings_are_those_of_the_code() -> None:
    assert meanings()["TRIED"] == "We have tried once."
    assert set(meanings()) == set(FaultFlag.__members__)
    assert all(meanings().values())


def test_meanings_without_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(explain.inspect, "getsource", nothing)
    assert set(meanings()) == set(FaultFlag.__members__)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--json"))
    assert found["flags"]["TRIED"] == {"value": 0x20, "meaning": "We have tried once."}
    assert len(found["combinations"]) == 4


# -- legal or not --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("TRIED", "I1"),
        ("DEFAULT UNSHARE WRITE", "I2"),
        ("DEFAULT VMA_LOCK", "I3"),
        ("RETRY_NOWAIT", "I4"),
        ("USER ALLOW_RETRY RETRY_NOWAIT", "I6"),
    ],
)
def test_illegal_flags(capsys: pytest.CaptureFixture[str], words: str, rule: str) -> None:
    told = output(capsys, *words.split(), status=1)
    assert f"NO, {rule}: " in told
    assert "SIGSEGV, the lock is kept" in told
    found = json.loads(output(capsys, "--json", *words.split(), status=1))
    assert found["legal"] is False
    assert found["rule"].startswith(rule)
    assert {tuple(entry["result"]) for entry in found["situations"]} == {("SIGSEGV",)}


@pytest.mark.parametrize(
    ("flags", "letter", "row"),
    [
        ("DEFAULT", "(a)", 2),
        ("ALLOW_RETRY", "(a)", 3),
        ("ALLOW_RETRY RETRY_NOWAIT", "(a)", 1),
        ("DEFAULT TRIED", "(b)", 4),
        ("KILLABLE", "(c)", 4),
        ("0", "(c)", 5),
    ],
)
def test_legal_flags(capsys: pytest.CaptureFixture[str], flags: str, letter: str, row: int) -> None:
    told = output(capsys, *flags.split())
    assert f"combination {letter}" in told
    assert f"row {row} ({PAGE_LOCK_RULES[row - 1].when})" in told
    assert told.count("source: ") == len(situations.SITUATIONS)


def test_bits_without_a_name_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0x814 = ALLOW_RETRY | KILLABLE | 0x800" in output(capsys, "0x814")


def test_every_set_of_flags_can_be_explained() -> None:
    """And no attempt in any of them breaks a rule of its own (V1 is looked at)."""
    for flags in range(0x400):
        legal = situations.broken_rule(flags) is None
        assert legal or illegal_flags(flags) or flags & 0x48 == 0x48
        for situation in situations.SITUATIONS:
            attempt = situations.make_attempt(flags, situation)
            nowait = bool(flags & FaultFlag.RETRY_NOWAIT)
            if not nowait:
                assert attempt.lock_kept == (not attempt.result & VmFault.RETRY)
            elif not flags & FaultFlag.TRIED:
                # With TRIED it may sleep: rows 4 and 5 do not know NOWAIT.
                assert attempt.lock_kept
                assert not attempt.waits
            if not flags & FaultFlag.ALLOW_RETRY:
                assert attempt.then != "retry"


# -- situations ----------------------------------------------------------------------------


def test_first_try() -> None:
    found = said(FIRST)
    slow = found["the page is missing, the store slow"]
    assert slow["waits"] == [
        {"reason": "read", "state": "INTERRUPTIBLE", "lock_kept": False, "interrupted": False}
    ]
    assert (slow["result"], slow["lock_kept"]) == (["MAJOR", "RETRY"], False)
    assert (slow["then"], slow["next_flags"]) == ("retry", f"{FIRST | 0x20:#x}")
    assert slow["did"] == ["begins the read"]
    fast = found["the page is missing, the store fast"]
    assert (fast["waits"], fast["result"], fast["then"]) == ([], ["MAJOR"], "done")
    assert found["the store failed for good"]["result"] == ["SIGBUS"]
    assert found["the store failed for good"]["then"] == "fail"
    assert found["no memory, only dirty pages"]["waits"][0]["reason"] == "memory"


def test_later_try_keeps_the_lock() -> None:
    found = said(FIRST | FaultFlag.TRIED)
    for name, reason in [
        ("the page is locked (being evicted)", "page_lock"),
        ("the page is missing, the store slow", "read"),
        ("somebody else reads the page", "read"),
        ("no memory, only dirty pages", "memory"),
    ]:
        entry = found[name]
        assert [(wait["reason"], wait["lock_kept"]) for wait in entry["waits"]] == [(reason, True)]
        assert entry["then"] == "done"
    failed = found["the store failed a moment ago"]
    assert failed["waits"][0]["lock_kept"] is False
    assert failed["then"] == "retry"


def test_signals() -> None:
    found = said(FIRST)
    for situation, by_any in [
        ("the page is locked (being evicted)", False),
        ("the page is missing, the store slow", True),
    ]:
        ctrl_c = found[f"{situation} and Ctrl-C is pending"]
        fatal = found[f"{situation} and a fatal signal is pending"]
        assert ctrl_c["waits"][0]["interrupted"] is by_any
        assert fatal["waits"][0]["interrupted"] is True
        assert ctrl_c["then"] == fatal["then"] == "stop"


def test_ctrl_c_is_nothing_to_a_caller_that_is_not_interruptible() -> None:
    found = said(FaultFlag.ALLOW_RETRY | FaultFlag.KILLABLE)
    assert found["the page is missing, the store slow and Ctrl-C is pending"]["then"] == "retry"
    assert found["the page is missing, the store slow and a fatal signal is pending"]["then"] == (
        "stop"
    )


def test_nowait_waits_for_nothing() -> None:
    for entry in said(FaultFlag.ALLOW_RETRY | FaultFlag.RETRY_NOWAIT).values():
        assert entry["waits"] == []
        assert entry["lock_kept"] is True


def test_writes() -> None:
    found = said(FIRST | FaultFlag.WRITE)
    assert found["the page is write-protected"]["did"] == ["maps it writable"]
    assert found["the vma is read-only"]["result"] == ["SIGSEGV"]
    asks = found["a snapshot has not copied the page yet"]
    assert asks["waits"][0]["reason"] == "write_protect"
    assert (asks["then"], asks["lock_kept"]) == ("retry", False)
    assert said(FIRST)["the vma is read-only"]["result"] == []


def test_it_cannot_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the fault path changes, so does the explanation."""
    from refault.fault import locks

    rules = (PAGE_LOCK_RULES[4],) * 5
    monkeypatch.setattr(locks, "PAGE_LOCK_RULES", rules)
    entry = said(FIRST)["the page is locked (being evicted)"]
    assert entry["waits"][0]["state"] == "UNINTERRUPTIBLE"
    assert entry["then"] == "done"
    assert explanation(FIRST)["page_lock_rule"]["row"] == 5


def test_json_is_the_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "--json", "DEFAULT", "user"))
    assert found == json.loads(json.dumps(explanation(FIRST)))
    assert found["hex"] == "0x254"
    assert found["first_try"] is True
