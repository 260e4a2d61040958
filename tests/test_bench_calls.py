"""bench/bench_calls.py: it runs against itself, and gives no number without parity."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from strategies import isas

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import bench_calls  # noqa: E402


class Side:
    def __init__(self, names, result):
        self.isa, self.names, self.result = "scalar", names, result

    def ask(self, name, calls):
        return calls * 1e-6 if calls else self.result

    def close(self):
        pass


def test_against_itself():
    isas()
    command = [sys.executable, str(BENCH / "bench_calls.py"), "--against", sys.executable]
    command += ["--only", "^quantize|of 3 weights numpy", "--starts", "1", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    assert [row[:32].strip() for row in rows][:2] == ["int8_linear of 3 weights numpy", "quantize 1x64 numpy"]
    assert "refused" not in done.stdout


@pytest.mark.parametrize(
    ("names", "result", "status"),
    [(["a", "b"], "same", 0), (["a", "b"], "other", 1), (["a"], "same", 1)],
)
def test_no_number_without_parity(names, result, status, monkeypatch, capsys):
    sides = {sys.executable: Side(["a", "b"], "same"), "other": Side(names, result)}
    monkeypatch.setattr(bench_calls, "Side", sides.get)
    assert bench_calls.main(["--against", "other", "--starts", "2", "--rounds", "3"]) == status
    rows = capsys.readouterr().out.splitlines()[2:]
    measured = {row[0] for row in rows if "refused" not in row}
    assert measured == {n for n in names if result == "same"}
    assert len(rows) == 2
