"""The benchmark of the GPU, without one: its cases run on the CPU, where a graph is a list of calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import bench_cuda
import common
import goals_cuda
import gpu
import peers_cuda
import targets
from common import Case, Contender, Parity, Result
from goals import NOT_YET, Goal, summary
from goals import run as run_goals
from test_bench_common import SETTINGS, FakeMachine

torch = pytest.importorskip("torch")
octavo = pytest.importorskip("octavo")

ON_A_GPU = torch.cuda.is_available()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(call: Callable[[int], object], count: int) -> tuple[int, Callable[[], object]]:
        return 2 * count, lambda: [call(i) for i in range(2 * count)]

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "capture", capture)
    monkeypatch.setattr(gpu, "turns", lambda nbytes: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(goals_cuda, "require_kernels", lambda: None)
    traced = partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(peers_cuda, "compiled", traced)
    monkeypatch.setattr(peers_cuda, "triton_kernels", None)


def admitted(goal: Goal) -> dict[str, common.Row]:
    with torch.no_grad():  # as peers.prepare has it for a whole run
        return {row.name: row for row in map(common.admit, goal.case.contenders())}


# ---- the cases


SMALL = {
    "product": goals_cuda.gemm_goal("G1", (40, 64, 128)),
    "product with gelu": goals_cuda.gemm_goal("G3", (40, 64, 128), gelu=True),
    "Hopper": goals_cuda.gemm_goal("G2", (40, 64, 128), hopper=True),
    "one row": goals_cuda.decode_goal("G5", (1, 64, 128)),
    "16 rows": goals_cuda.decode_goal("G5", (16, 64, 128)),
    "calls": goals_cuda.decode_goal("G6", (1, 64, 128), graph=False),
    "quantize": goals_cuda.quantize_goal((70, 96), quick=False),
    "mask": goals_cuda.mask_goal((80, 1024)),
    "2:4": goals_cuda.pack_goal((70, 96)),
    "any shape": goals_cuda.shapes_goal(quick=True),
}
NO_GPU_OPS = ("torch eager + cuSPARSELt compress",)


@pytest.mark.parametrize("goal", SMALL.values(), ids=SMALL)
@pytest.mark.usefixtures("on_the_cpu")
def test_everybody_does_the_work(goal: Goal) -> None:
    rows = admitted(goal)
    ours = [row for row in rows.values() if row.ours and row.status != NOT_YET]
    assert ours
    assert all(row.status == "ok" and "exact" in row.parity for row in ours), ours
    for name, row in rows.items():
        allowed = ("ok", "not installed", NOT_YET) if name not in NO_GPU_OPS else ("failed",)
        assert row.status.startswith(allowed), row


@pytest.mark.usefixtures("on_the_cpu")
def test_what_has_no_kernel_yet_is_a_row_of_its_own() -> None:
    for name in ("Hopper", "2:4"):
        rows = list(admitted(SMALL[name]).values())
        assert (rows[0].ours, rows[0].status) == (True, NOT_YET)
        assert rows[1].status == "ok"


@pytest.mark.usefixtures("on_the_cpu")
def test_wrong_results_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    true = octavo.scaled_int_mm

    def wrong(*arguments: Any, out: Any = None, **more: Any) -> Any:
        y = true(*arguments, out=out, **more)
        y[-1, -1] += 1
        return y

    monkeypatch.setattr(octavo, "scaled_int_mm", wrong)
    row = admitted(SMALL["product"])["octavo scaled_int_mm"]
    assert row.status == "refused"
    assert "1 of 2560 differ" in row.parity


@pytest.mark.usefixtures("on_the_cpu")
def test_what_is_not_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(octavo, "quantize", lambda x, out=None: octavo.Quantized(*out, None))
    assert admitted(SMALL["quantize"])["octavo quantize"].status != "ok"


@pytest.mark.skipif(ON_A_GPU, reason="there is a GPU")
def test_without_its_kernels_octavo_has_no_number() -> None:
    row = common.admit(goals_cuda.ours("octavo", lambda name: Contender(name)))
    assert (row.ours, row.status[:7]) == (True, "failed:")


def test_the_goals_are_those_of_the_plan() -> None:
    for quick in (False, True):
        goals = goals_cuda.make_goals(quick)
        assert [goal.case.id for goal in goals] == [
            "G1",
            "G2",
            "G3",
            "G4",
            "G5",
            "G5",
            "G6",
            "G6",
            "G7",
            "G8",
            "G9",
            "G10",
        ]
        assert all(goal.bounds for goal in goals)
        assert len({f"{goal.case.id} {goal.case.label}" for goal in goals}) == len(goals)
    labels = [goal.case.label for goal in goals_cuda.make_goals(False)]
    assert labels[0].startswith("2048x4096x8192")
    assert labels[5].startswith("16x8192x21760")


# ---- time, turns, parity


def test_the_clock_adds_up_what_lies_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        device_ms = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.device_ms += 1.5
            self.at = Event.device_ms

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: Any) -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    now = gpu.EventClock()
    start = now()
    Event.device_ms += 7.0
    assert now() - start == pytest.approx(8.5e-3)


def test_buffers_take_turns_beyond_the_l2() -> None:
    mib = 1 << 20
    assert gpu.turns(16 * mib, 50 * mib) == 7
    assert gpu.turns(67 * mib, 50 * mib) == 2
    assert gpu.turns(400 * mib, 50 * mib) == 1


def test_parity_says_where() -> None:
    a = torch.zeros(3, 4, dtype=torch.bfloat16)
    b = a.clone()
    b[1, 2] = -0.0
    assert gpu.check_same(a, a.clone()) == Parity(True, "exact")
    assert "1 of 12 differ, such as at (1, 2)" in gpu.check_same(b, a).detail
    assert not gpu.check_same(a.float(), a).ok
    assert not gpu.check_same(a[0], a).ok


def test_near_is_not_equal() -> None:
    a = torch.ones(8)
    assert gpu.check_near(a * 1.001, a, 0.01).ok
    assert not gpu.check_near(a * 1.1, a, 0.01).ok
    assert not gpu.check_near(a * float("nan"), a, 0.01).ok
    q = torch.zeros(1000, dtype=torch.int8)
    one, two = q.clone(), q.clone()
    one[3], two[3] = 1, 2
    assert gpu.check_share(one, q, 0.0011).ok
    assert not gpu.check_share(one, q, 0.0005).ok
    assert not gpu.check_share(two, q, 0.001).ok


def test_inputs_are_quantized_as_defined() -> None:
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    data, scale = gpu.quantized(x)
    with octavo.use_backend("reference"):
        expected = octavo.quantize(x)
    assert torch.equal(data, expected.data)
    assert torch.equal(scale, expected.scale)


def test_the_card_may_be_silent() -> None:
    def missing(*more: Any, **settings: Any) -> Any:
        raise OSError

    assert gpu.driver(missing) == {}
    answer = SimpleNamespace(stdout="580.1, 1980 MHz, 2619 MHz, 700 W, 30\n")
    assert gpu.driver(lambda *more, **settings: answer)["driver_version"] == "580.1"


# ---- targets and the run


def measured(fake: FakeMachine, *contenders: Contender, limit: str = "peak") -> Result:
    case = Case("G1", "work", 2e9, "GOP/s", limit, lambda: contenders)
    return common.run_case(case, fake.limits(), SETTINGS, fake.clock)


def test_targets_are_met_or_missed() -> None:
    fake = FakeMachine()
    result = measured(
        fake,
        fake.contender("octavo", 0.01, ours=True),
        fake.contender("sort", 0.2),
        fake.contender("best", 0.02),
    )
    bounds = {
        targets.at_most(0.011): "<= 11.00 ms: 10.00 ms, met",
        targets.at_most(0.009): "<= 9.00 ms: 10.00 ms, MISSED",
        targets.at_least(199.0, "GOP/s"): ">= 199 GOP/s: 200.00 GOP/s, met",
        targets.of_limit(0.9): ">= 90% of the limit: 20.0%, MISSED",
        targets.times_best(1.5): ">= 1.5x the best peer: 2.00x, met",
        targets.times_best(21, "sort"): ">= 21x sort: 20.00x, MISSED",
        targets.times_best(1, "nobody"): ">= 1x nobody: no peer to compare with, not measured",
        targets.exact(): "exact: exact, met",
    }
    for bound, text in bounds.items():
        assert targets.show(bound.judge(result)) == text


def test_a_missing_kernel_has_no_verdict() -> None:
    fake = FakeMachine()
    absent = goals_cuda.absent("octavo")
    result = measured(fake, absent, fake.contender("octavo, another", 1.0, ours=True))
    verdict = targets.at_most(9.0).judge(result)
    assert (verdict.value, verdict.met) == (NOT_YET, None)
    assert summary([result], [[verdict]]) == (
        "G1 work: not there yet, <= 9.00 s: not there yet, not measured"
    )


def run(goals: list[Goal], fake: FakeMachine, **more: Any) -> int:
    settings = {"seconds": 1e9, "now": lambda: fake.time, **more}
    measure = lambda case: common.run_case(case, fake.limits(), SETTINGS, fake.clock)  # noqa: E731
    return run_goals("cuda", goals, SETTINGS, measure, {"gpu": "none"}, **settings)


def goal(label: str, *contenders: Contender) -> Goal:
    return Goal(Case("G7", label, 2e9, "GB/s", "copy", lambda: contenders), [targets.of_limit(0.5)])


def test_a_run_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeMachine()
    sides = fake.contender("octavo", 0.5, ours=True), fake.contender("peer", 1.0)
    path = tmp_path / "gpu.json"
    assert run([goal("one", *sides), goal("two", goals_cuda.absent("octavo"))], fake, json_path=path) == 0
    text = capsys.readouterr().out
    assert "target >= 50% of the limit: 20.0%, MISSED" in text
    assert "G7 one: 500.00 ms, 4.00 GB/s, 20.0% of copy, 2.00x best peer" in text
    document = json.loads(path.read_text())
    assert document["host"] == {"gpu": "none"}
    assert [case["targets"][0]["met"] for case in document["cases"]] == [False, None]


@pytest.mark.parametrize("status", ["refused", "failed"])
def test_a_failure_stops_nobody_and_is_the_exit_status(
    status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeMachine()

    def check() -> Parity:
        if status == "failed":
            raise ValueError("broken")
        return Parity(False, "differs")

    bad = fake.contender("octavo", 1.0, ours=True, check=check)
    good = fake.contender("octavo", 1.0, ours=True)
    assert run([goal("bad", bad), goal("good", good)], fake) == 1
    text = capsys.readouterr().out
    assert f"G7 bad: {status}" in text
    assert "G7 good: 1.00 s" in text


def test_a_case_that_breaks_leaves_the_others_their_turn(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeMachine()

    def contenders() -> list[Contender]:
        raise MemoryError("64 GiB")

    broken = Goal(Case("G8", "broken", 1.0, "GB/s", "copy", contenders), [])
    assert run([broken, goal("good", fake.contender("octavo", 1.0, ours=True))], fake) == 1
    assert "failed: MemoryError: 64 GiB" in capsys.readouterr().out


def test_time_runs_out_between_cases(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeMachine()
    goals = [goal(f"case {i}", fake.contender("octavo", 1.0, ours=True)) for i in range(2)]
    assert run(goals, fake, seconds=1.0) == 2
    assert "case 1: out of time" in capsys.readouterr().out


def test_a_slow_contender_takes_fewer_samples() -> None:
    fake = FakeMachine()
    settings = common.Settings(5, 0.0, 0.0, 1, 0, 1, longest_s=2.5)
    contenders = [fake.contender("slow", 1.0), fake.contender("fast", 0.1, ours=True)]
    case = Case("T1", "work", 2e9, "GOP/s", "peak", lambda: contenders)
    result = common.run_case(case, fake.limits(), settings, fake.clock)
    assert [len(row.seconds) for row in result.rows] == [3, 5]


@pytest.mark.skipif(ON_A_GPU, reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="NVIDIA GPU"):
        bench_cuda.main(["--quick"])
