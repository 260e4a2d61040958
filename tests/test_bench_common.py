"""The benchmark harness on a clock that moves when a contender works: order, refusal, repetition, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import cli
import common
import held
import machine
import peers
import plot
from common import Case, Contender, Parity, Settings
from machine import CpuTime

SETTINGS = Settings(samples=3, min_sample_s=0.0, warmup_s=0.0, warmup_calls=1, repeats=2, probes=1)


class FakeMachine:
    """Its time, its log of what ran, its steal, and a native module whose limits are constant."""

    def __init__(
        self, steal: Sequence[float] = (), peak: Sequence[float] = (), others: Sequence[float] = ()
    ) -> None:
        self.time = 0.0
        self.log: list[str] = []
        self.steal, self.stolen, self.ticks = list(steal), 0.0, 0.0
        self.peaks, self.others, self.used_by_others = list(peak), list(others), 0.0
        self.clock = machine.Clock(lambda: self.time, lambda: self.log.append("settle"), self.cpu_time)

    def cpu_time(self) -> CpuTime:
        """Read before and after each attempt: every second reading ends one."""
        self.ticks += 1
        if self.ticks % 2 == 0 and self.steal:
            self.stolen += 100 * self.steal.pop(0)
        if self.ticks % 2 == 0 and self.others:
            self.used_by_others += 100 * self.others.pop(0)
        busy = 100 * (self.ticks // 2) - self.stolen
        return CpuTime(busy, self.stolen, own=busy - self.used_by_others)

    def probe_peak(self, milliseconds: float, threads: int) -> float:
        self.log.append("peak")
        self.time += milliseconds / 1e3
        return self.peaks.pop(0) if self.peaks else 1000.0

    def probe_read(self, buffer: int, nbytes: int, threads: int) -> int:
        self.time += nbytes / 10e9
        return 0

    def probe_copy(self, source: int, target: int, nbytes: int, threads: int) -> None:
        self.time += 2 * nbytes / 20e9

    def contender(self, name: str, seconds: float, **more: Any) -> Contender:
        def call(i: int) -> None:
            self.log.append(f"{name}{i}")
            self.time += seconds

        more = {"check": lambda: Parity(True, "exact"), **more}
        return Contender(name, call, **more)

    def limits(self) -> machine.Limits:
        return machine.Limits(self, 2, self.clock, nbytes=1 << 12)

    def run(self, *contenders: Contender, settings: Settings = SETTINGS, **more: Any) -> common.Result:
        case = Case("T1", "work", 2e9, "GOP/s", "peak", lambda: contenders)
        return common.run_case(case, self.limits(), settings, self.clock, **more)


def row(result: common.Result, name: str) -> common.Row:
    return next(r for r in result.rows if r.name == name)


# ---- statistics and parity


def test_spread_is_median_and_percentiles() -> None:
    values = [float(v) for v in range(101)]
    assert common.spread(values[::-1]) == common.Spread(median=50.0, p10=10.0, p90=90.0, samples=101)
    assert common.spread([3.0]) == common.Spread(3.0, 3.0, 3.0, 1)
    with pytest.raises(ValueError, match="at least one sample"):
        common.spread([])


def test_one_outlier_leaves_the_median() -> None:
    assert common.spread([1.0] * 20 + [1000.0]).median == 1.0


@pytest.mark.parametrize(
    ("got", "ok"),
    [
        (np.array([1.0, -0.0], np.float32), True),
        (np.array([1.0, 0.0], np.float32), False),
        (np.array([1.0, -0.0], np.float64), False),
        (np.array([[1.0, -0.0]], np.float32), False),
    ],
)
def test_check_equal_is_to_the_bit(got: Any, ok: bool) -> None:
    assert common.check_equal(got, np.array([1.0, -0.0], np.float32)).ok is ok


def test_check_equal_says_where() -> None:
    parity = common.check_equal(np.array([[1, 2], [3, 5]]), np.array([[1, 2], [3, 4]]))
    assert not parity.ok
    assert "1 of 4" in parity.detail
    assert "(1, 1): expected 4, got 5" in parity.detail


def test_check_close_refuses_nan_and_wrong_shapes() -> None:
    one = np.ones(4)
    assert common.check_close(one * 1.001, one, 0.01).ok
    assert not common.check_close(one * 1.1, one, 0.01).ok
    assert not common.check_close(np.full(4, np.nan), one, 0.01).ok
    assert not common.check_close(np.ones((4, 1)), one, 0.01).ok


def test_check_steps_allows_single_steps_only() -> None:
    base = np.zeros(1000, np.int8)
    one, two = base.copy(), base.copy()
    one[7], two[7] = 1, 2
    assert common.check_steps(base, base, 0.0).detail == "exact"
    assert common.check_steps(one, base, 0.001).ok
    assert not common.check_steps(one, base, 0.0005).ok
    assert not common.check_steps(two, base, 0.001).ok


def test_check_all_reports_the_failure() -> None:
    good, bad = Parity(True, "exact"), Parity(False, "differs")
    assert common.check_all(good, bad) is bad
    assert common.check_all(good, good, Parity(True, "err 1e-2")) == Parity(True, "exact, err 1e-2")


# ---- order


def test_samples_are_interleaved_and_the_buffers_rotate() -> None:
    fake = FakeMachine()
    fake.run(fake.contender("a", 1.0), fake.contender("b", 2.0))
    log = [entry for entry in fake.log if entry != "settle"]
    warmup, rounds = (
        ["peak", "a0", "b0"],
        [["a1", "a2", "b1", "b2", "peak"], ["a3", "a4", "b3", "b4", "peak"]],
    )
    assert log == [*warmup, *rounds[0], *rounds[1], "a5", "a6", "b5", "b6", "peak", "peak"]


def test_every_sample_starts_on_an_idle_process() -> None:
    fake = FakeMachine()
    fake.run(fake.contender("a", 1.0), fake.contender("b", 2.0))
    firsts = [i for i, entry in enumerate(fake.log) if entry in ("a1", "b1", "a3", "b3", "a5", "b5", "peak")]
    assert all(fake.log[i - 1] == "settle" for i in firsts)


def test_parity_comes_before_everything() -> None:
    fake = FakeMachine()

    def check() -> Parity:
        assert fake.log == []
        return Parity(True, "exact")

    fake.run(fake.contender("a", 1.0, check=check), fake.contender("b", 1.0, check=check))


def test_short_calls_are_grouped() -> None:
    fake = FakeMachine()
    settings = Settings(samples=1, min_sample_s=0.01, warmup_s=0.0, warmup_calls=1, repeats=0, probes=1)
    result = fake.run(fake.contender("a", 0.001), fake.contender("slow", 1.0), settings=settings)
    assert sum(entry.startswith("a") for entry in fake.log) in (
        12,
        13,
    )  # warm-up 1, lead-in 1, sample 10 or 11
    assert row(result, "a").seconds == [pytest.approx(0.001)]
    assert row(result, "slow").seconds == [pytest.approx(1.0)]


def test_a_call_of_several_units_counts_each() -> None:
    fake = FakeMachine()
    result = fake.run(fake.contender("graph", 8.0, units=4))
    assert row(result, "graph").seconds == [pytest.approx(2.0)] * 3


def test_settle_waits_for_spinning_workers() -> None:
    cpu, slept = iter([0.0, 0.004, 0.004, 0.008, 0.008, 0.008]), []
    machine.settle(lambda: next(cpu), slept.append, step=0.002)
    assert slept == [0.002] * 3


def test_settle_gives_up() -> None:
    now, slept = iter(range(1000)), []
    machine.settle(lambda: float(next(now)), slept.append, step=0.1, longest=1.0)
    assert len(slept) == 10


# ---- who gets a number


def test_who_fails_parity_gets_no_number() -> None:
    fake = FakeMachine()
    wrong = fake.contender("wrong", 0.1, check=lambda: Parity(False, "3 of 9 differ"))
    result = fake.run(fake.contender("octavo", 2.0, ours=True), wrong, fake.contender("peer", 3.0))
    refused = row(result, "wrong")
    assert (refused.status, refused.parity) == ("refused", "3 of 9 differ")
    assert refused.time is None
    assert refused.seconds == []
    assert not any(entry.startswith("wrong") for entry in fake.log)
    assert row(result, "octavo").ratio == pytest.approx(1.5), "the refused one is not the best peer"
    assert "refused" in common.table(result)


def test_octavo_is_refused_like_anybody() -> None:
    fake = FakeMachine()
    wrong = fake.contender("octavo", 0.1, ours=True, check=lambda: Parity(False, "differs"))
    result = fake.run(wrong, fake.contender("peer", 3.0))
    assert row(result, "octavo").time is None
    assert common.first_ratio(result) is None


def test_a_peer_that_raises_is_a_row() -> None:
    def check() -> Parity:
        raise RuntimeError("no such kernel\nand a long trace")

    fake = FakeMachine()
    result = fake.run(fake.contender("broken", 1.0, check=check), fake.contender("peer", 1.0))
    assert (row(result, "broken").status, row(result, "broken").parity) == (
        "failed",
        "RuntimeError: no such kernel",
    )
    assert row(result, "peer").time is not None


def test_a_peer_that_is_not_installed_is_a_row() -> None:
    fake = FakeMachine()
    result = fake.run(Contender("elsewhere", why_not="not installed"), fake.contender("peer", 1.0))
    assert row(result, "elsewhere").status == "not installed"
    assert any("elsewhere" in line and "not installed" in line for line in common.table(result).splitlines())


def test_a_peer_that_cannot_be_built_is_a_row() -> None:
    def build(name: str, shape: int) -> Contender:
        raise AttributeError(f"no such op for {shape}\nand a long trace")

    assert peers.peer("p", build, 3, needs=[np]).why_not == "failed: AttributeError: no such op for 3"
    assert peers.peer("p", build, 3, needs=[np, None]).why_not == "not installed"
    assert peers.peer("p", lambda name, x: Contender(name, why_not=x), "y", needs=[]).why_not == "y"


def test_a_contender_without_a_check_gets_no_number() -> None:
    fake = FakeMachine()
    assert row(fake.run(fake.contender("trusted", 1.0, check=None)), "trusted").time is None


# ---- rates, limits, noise


def test_rates_and_ratios() -> None:
    fake = FakeMachine()
    slow, fast = fake.contender("slow", 4.0), fake.contender("fast", 2.0)
    result = fake.run(fake.contender("octavo", 1.0, ours=True), slow, fast)
    assert [r.rate for r in result.rows] == [pytest.approx(v) for v in (2.0, 0.5, 1.0)]
    assert [r.ratio for r in result.rows] == [pytest.approx(v) for v in (2.0, 0.5, 1.0)]
    assert [r.of_limit for r in result.rows] == [pytest.approx(v) for v in (0.002, 0.0005, 0.001)]
    assert result.limit == common.Spread(1000.0, 1000.0, 1000.0, 3)
    assert result.before == {"peak": 1000.0, "read": pytest.approx(10.0), "copy": pytest.approx(20.0)}
    assert set(result.after) == set(result.before)


def test_without_the_native_module_there_are_no_limits() -> None:
    fake = FakeMachine()
    case = Case("T1", "work", 2e9, "GB/s", "copy", lambda: [fake.contender("peer", 1.0)])
    result = common.run_case(case, machine.Limits(None, 2, fake.clock), SETTINGS, fake.clock)
    assert result.limit is None
    assert result.rows[0].of_limit is None
    assert "peer" in common.table(result)


def test_a_quiet_run_is_not_repeated() -> None:
    fake = FakeMachine(steal=[0.05])
    result = fake.run(fake.contender("a", 1.0))
    assert (result.attempts, result.noisy, result.steal) == (1, [], pytest.approx(0.05))


def test_a_noisy_run_is_repeated_until_quiet() -> None:
    fake = FakeMachine(steal=[0.4, 0.2, 0.01])
    result = fake.run(fake.contender("a", 1.0))
    assert (result.attempts, result.noisy, result.steal) == (3, [], pytest.approx(0.01))
    assert len(row(result, "a").seconds) == SETTINGS.samples


def test_the_least_noisy_run_is_kept_and_marked() -> None:
    fake = FakeMachine(steal=[0.4, 0.1, 0.3])
    result = fake.run(fake.contender("a", 1.0))
    assert (result.attempts, result.steal) == (3, pytest.approx(0.1))
    assert result.noisy == ["steal 10.0%"]
    assert "NOISY" in common.table(result)


def test_other_processes_are_noise_too() -> None:
    fake = FakeMachine(others=[0.3, 0.02])
    result = fake.run(fake.contender("a", 1.0))
    assert (result.attempts, result.noisy, result.others) == (2, [], pytest.approx(0.02))


def test_moving_limits_are_noise_too() -> None:
    fake = FakeMachine(peak=[1600.0, 1600.0, 1600.0, 1600.0, 700.0])
    result = fake.run(fake.contender("a", 1.0))
    assert result.attempts == 2
    assert result.noisy == []
    assert common.why_noisy(0.0, 0.0, {"peak": 1600.0}, {"peak": 700.0}) == ["peak went from 1600 to 700"]
    assert common.why_noisy(None, None, {"peak": None}, {"peak": None}) == []


# ---- the machine


def test_cpu_time_reads_proc_stat(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 1 20 5000 7 3 4 40 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    read = machine.read_cpu_time(stat)
    assert read is not None
    assert read.steal / read.busy == pytest.approx(40 / 128)
    assert read.own > 0
    assert machine.read_cpu_time(tmp_path / "none") is None
    stat.write_text("cpu 1 2\n")
    assert machine.read_cpu_time(stat) is None


def test_idle_cpus_do_not_dilute_what_is_lost() -> None:
    shares = machine.lost_shares(CpuTime(100, 10, 50), CpuTime(190, 20, 120))
    assert shares == (pytest.approx(0.1), pytest.approx(0.2))
    assert machine.lost_shares(CpuTime(5, 5, 5), CpuTime(5, 5, 5)) == (0.0, 0.0)
    assert machine.lost_shares(None, CpuTime(5, 5, 5)) == (None, None)


def test_llc_is_the_largest_cache(tmp_path: Path) -> None:
    for index, size in enumerate(["48K", "2048K", "107520K"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert machine.llc_bytes(tmp_path) == 107520 << 10
    assert machine.llc_bytes(tmp_path / "none") == 64 << 20


def test_rotation_exceeds_the_cache() -> None:
    assert machine.rotation(16 << 20, llc=105 << 20) == 14
    assert machine.rotation(1 << 30, llc=105 << 20) == 2
    assert machine.rotation(0, llc=1) == 2


def test_threads_are_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def __init__(self, name: str, most: int) -> None:
            self.__name__, self.most, self.threads = name, most, 1

        def set_num_threads(self, n: int) -> None:
            self.threads = min(n, self.most)

        def get_num_threads(self) -> int:
            return self.threads

    runtimes: dict[str, Any] = {"octavo": Runtime("octavo", 8), "torch": Runtime("torch", 2)}
    monkeypatch.setattr(machine, "optional", runtimes.get)
    machine.set_threads(2)
    assert [r.threads for r in runtimes.values()] == [2, 2]
    with pytest.raises(RuntimeError, match="torch expected 4, got 2"):
        machine.set_threads(4)


def test_host_line_names_what_is_missing() -> None:
    line = machine.host_line({**machine.host_facts(2), "onnxruntime": None})
    assert "onnxruntime not installed" in line
    assert "2 threads" in line
    assert "\n" not in line


# ---- a whole run


def test_json_holds_every_sample_and_fact(tmp_path: Path) -> None:
    fake, said = FakeMachine(), []
    path = tmp_path / "result.json"
    peers = [
        fake.contender("octavo", 1.0, ours=True),
        fake.contender("peer", 2.0),
        Contender("x", why_not="not installed"),
    ]
    cases = [Case("T1", f"case {i}", 2e9, "GOP/s", "peak", lambda: peers) for i in range(2)]
    facts = machine.host_facts(2)
    common.run_all("test", cases, SETTINGS, fake.limits(), facts, fake.clock, path, said.append)
    text = "\n".join(said)
    assert said[0] == machine.host_line(facts)
    assert "geometric mean 2.00x, least 2.00x" in text
    document = json.loads(path.read_text())
    assert document["is_result"] is False, "three samples are no result"
    assert document["host"] == facts
    assert document["settings"]["samples"] == 3
    assert [case["label"] for case in document["cases"]] == ["case 0", "case 1"]
    first, second, third = document["cases"][1]["rows"]
    assert first["seconds"] == [1.0, 1.0, 1.0]
    assert first["time"] == {"median": 1.0, "p10": 1.0, "p90": 1.0, "samples": 3}
    assert (first["ours"], first["ratio"], second["ratio"]) == (True, 2.0, 1.0)
    assert (third["status"], third["time"]) == ("not installed", None)
    assert document["cases"][0]["steal"] == 0.0


@pytest.mark.parametrize(
    ("samples", "quick", "expected"), [(15, False, True), (14, False, False), (15, True, False)]
)
def test_what_counts_as_a_result(samples: int, quick: bool, expected: bool) -> None:
    assert common.to_json("t", {}, Settings(samples=samples, quick=quick), [])["is_result"] is expected


def test_the_defaults_are_results() -> None:
    assert Settings().samples >= common.RESULT_SAMPLES
    assert common.QUICK.quick


@pytest.mark.parametrize(("seconds", "shown"), [(2.5, "2.50 s"), (0.0123, "12.30 ms"), (4.7e-6, "4.7 us")])
def test_times_are_readable(seconds: float, shown: str) -> None:
    assert common.show_time(seconds) == shown


def named(id: str, label: str, **more: Any) -> Case:
    return Case(id, label, 2e9, "GOP/s", "peak", list, **more)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["C1", "C10"]),
        ("C1", ["C1"]),
        ("C10", ["C10"]),
        ("avx2", ["C10"]),
        ("s8 ->", ["C1", "C10"]),
        ("x8", []),
    ],
)
def test_only_selects_whole_words(only: str | None, expected: list[str]) -> None:
    cases = [named("C1", "8x8x8 s8 -> s32"), named("C10", "8x8x8 s8 -> s32, on avx2")]
    assert [case.id for case in cli.select(cases, only)] == expected


def test_unknown_case_is_an_error() -> None:
    pytest.importorskip("octavo")
    with pytest.raises(SystemExit, match="nothing-like-this"):
        cli.main("test", lambda quick, threads: [], argv=["--only", "nothing-like-this", "--threads", "1"])


# ---- everybody held to one ISA


def test_a_process_is_held_by_the_whole_environment() -> None:
    for isa, variables in held.ENVIRONMENTS.items():
        assert held.held_isa({**variables, "HOME": "/"}) == isa
        assert held.held_isa(dict(list(variables.items())[1:])) is None
    assert held.held_isa({}) is None


def test_a_peer_without_a_switch_is_left_out_of_a_held_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str) -> Contender:
        return Contender(name, lambda i: None)

    for isa, free, bound in ((None, True, True), ("avx2", True, False)):
        monkeypatch.setattr(peers, "held_isa", lambda isa=isa: isa)
        assert (peers.peer("p", build, needs=[]).call is not None) is free
        row = peers.peer("p", build, needs=[], can_be_held=False)
        assert (row.call is not None) is bound
        assert row.why_not == ("" if bound else "not held to avx2")


def arguments(*flags: str) -> Any:
    return cli.parse_arguments("test", True, ["--threads", "2", *flags], plots=True)


class HeldRun:
    """Stands for the process; writes `cases`, or nothing as one that died."""

    def __init__(self, returncode: int, cases: list[Any] | None) -> None:
        self.returncode, self.cases = returncode, cases

    def __call__(self, command: list[str], env: dict[str, str]) -> HeldRun:
        self.command, self.env = command, env
        if self.cases is not None:
            Path(command[command.index("--json") + 1]).write_text(json.dumps({"cases": self.cases}))
        return self


def test_a_held_run_is_this_script_with_the_environment() -> None:
    process = HeldRun(0, [{"id": "C10"}])
    args = arguments("--quick", "--samples", "3", "--only", "C10", "--json", "kept.json", "--plot", "p.png")
    assert cli.run_held("avx2", args, process) == (0, [{"id": "C10"}])
    assert process.command[:4] == [sys.executable, sys.argv[0], "--isa", "avx2"]
    assert "kept.json" not in process.command
    assert process.command[6:] == ["--threads", "2", "--quick", "--samples", "3", "--only", "C10"]
    assert held.held_isa(process.env) == "avx2"


def test_a_held_run_that_dies_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_held("avx2", arguments(), HeldRun(-4, None)) == (-4, [])
    assert "held to avx2 ended with status -4" in capsys.readouterr().out


def test_the_environment_of_a_case_reaches_the_json() -> None:
    fake = FakeMachine()
    case = named("C10", "work", environment={"OCTAVO_ISA": "avx2"}, operations=2e9, traffic=1e9)
    result = common.run_case(case, fake.limits(), SETTINGS, fake.clock)
    (written,) = common.to_json("t", {}, SETTINGS, [result])["cases"]
    assert (written["environment"], written["operations"], written["traffic"]) == (
        {"OCTAVO_ISA": "avx2"},
        2e9,
        1e9,
    )


class FakeCore(FakeMachine):
    def isas_available(self) -> list[str]:
        return ["avx2"]


def test_held_cases_follow_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ran = tmp_path / "r.json", []

    def run_held(isa: str, args: Any) -> tuple[int, list[Any]]:
        ran.append(isa)
        return 3, [{"id": "C10"}]

    monkeypatch.setattr(cli, "optional", {"octavo": object(), "octavo._core": FakeCore()}.get)
    monkeypatch.setattr(cli, "set_threads", lambda threads: None)
    monkeypatch.setattr(cli, "run_held", run_held)
    status = cli.main(
        "test",
        lambda quick, threads: [],
        lambda quick, threads, isa: [named("C10", f"work, on {isa}")] if isa != "avx512vnni" else [],
        ["--json", str(path), "--threads", "1"],
    )
    said = capsys.readouterr().out
    assert (status, ran) == (1, ["avx2"])
    assert json.loads(path.read_text())["cases"] == [{"id": "C10"}]
    assert "C10 on avxvnni: skipped" in said
    assert "avx512vnni" not in said


# ---- the roofline


def run_document(fake: FakeMachine) -> dict[str, Any]:
    sides = [fake.contender("octavo", 1.0, ours=True), fake.contender("a", 4.0), fake.contender("b", 2.0)]
    more: dict[str, Any] = {"operations": 2e9, "traffic": 1e9}
    cases = [
        Case("C1", "work", 2e9, "GOP/s", "peak", lambda: sides, **more),
        Case("C10", "held", 2e9, "GOP/s", "peak", lambda: sides, **more, environment={"OCTAVO_ISA": "avx2"}),
        Case("C9", "no place", 2e9, "GOP/s", "peak", lambda: sides),
        Case("C2", "no number", 2e9, "GOP/s", "peak", lambda: sides[1:], **more),
    ]
    results = [common.run_case(case, fake.limits(), SETTINGS, fake.clock) for case in cases]
    facts = {"isa": "amx", "cpu": "a processor", "threads": 2}
    document: dict[str, Any] = json.loads(json.dumps(common.to_json("t", facts, SETTINGS, results)))
    return document


def test_the_roofline_has_a_panel_per_isa() -> None:
    panels = plot.panels(run_document(FakeMachine()))
    assert {isa: [case["id"] for case in cases] for isa, cases in panels.items()} == {
        "amx": ["C1"],
        "avx2": ["C10"],
    }
    (case,) = panels["amx"]
    peer = plot.best_peer(case)
    assert peer is not None
    assert peer["name"] == "b"
    assert plot.intensity(case) == pytest.approx(2.0)
    assert plot.gops(case, peer) == pytest.approx(1.0)
    assert (plot.roof([case], "peak"), plot.roof([case], "read")) == (1000.0, pytest.approx(10.0))
    assert plot.key_line(1, case).split() == ["1", "C1", "work", "2", "1", "b"]


def test_the_roofline_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = run_document(FakeMachine())
    plot.roofline(document, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="no case"):
        plot.roofline({**document, "cases": []}, tmp_path / "none.png")


def test_a_plot_without_matplotlib_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "optional", {"octavo": object()}.get)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        cli.main("t", lambda q, t: [], None, ["--plot", "p.png"], plot.roofline)
