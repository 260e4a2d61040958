"""all-MiniLM-L6-v2 as sentence embeddings: real weights, real text, everybody at the same tokens."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import octavo
from common import Case, Parity
from goals import Goal
from models_systems import (
    PEER_COSINE,
    System,
    Workbench,
    cosine,
    is_compiler,
    octavo_nn,
    openvino_runner,
    ort_runner,
    ours,
    provides,
    without_compilers,
)
from targets import Bound, times_best

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))  # shared with the demo
import minilm

Shape = tuple[int, int]  # sentences x tokens
Encode = Callable[[Any, Any], Any]  # int64 ids and mask -> f32 [sentences, 384]

QUICK_SHAPES = ((1, 32), (2, 32))
MIN_COSINE = 0.997  # of octavo's, or it is refused
MIN_TARGETS = {"cosine": 0.9990, "neighbours": 0.99}
# Faster than torch bf16 and than the best peer by as much as the plan has it, where the peers are all there.
RATIOS = {(1, 32): (2.56, 1.31), (8, 128): (1.71, 1.39), (32, 256): (2.70, 1.50)}


class Sentence(torch.nn.Module):
    """Tokens to embeddings: what every system runs and is timed for."""

    def __init__(self, dtype: str = "float32", **options: Any) -> None:
        super().__init__()
        self.encoder = minilm.load_model(dtype, **options)
        self.eval()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return minilm.pool(hidden, attention_mask)


class Texts:
    """Batches of one shape: every second docstring to judge by, the others to calibrate with. No system
    compiles a shape for its quality alone."""

    def __init__(self, count: int, shape: Shape) -> None:
        texts, tokenizer, (sentences, tokens) = minilm.docstrings(count), minilm.load_tokenizer(), shape

        def batches(chosen: Sequence[str]) -> list[tuple[Any, Any]]:
            options = {"padding": "max_length", "truncation": True, "max_length": tokens}
            some = [list(chosen[i : i + sentences]) for i in range(0, len(chosen), sentences)]
            encoded = [tokenizer(texts, return_tensors="pt", **options) for texts in some]
            return [(e["input_ids"], e["attention_mask"]) for e in encoded]

        self.judged, self.calibration = batches(texts[::2]), batches(texts[1::2])
        self.tokens = torch.cat([ids[mask == 1] for ids, mask in self.judged + self.calibration])

    def batch(self, shape: Shape) -> tuple[Any, Any]:
        """Text without padding."""
        ids = self.tokens[: shape[0] * shape[1]].reshape(shape)
        return ids, torch.ones_like(ids)

    def embed(self, encode: Encode) -> Any:
        return torch.cat([encode(*batch) for batch in self.judged])


def operations(sentences: int, tokens: int) -> float:
    """Of the products in the six layers, 384 wide with 1536 within."""
    linear, attention = 4 * 384 * 384 + 2 * 384 * 1536, 2 * tokens * 384
    return 2.0 * 6 * sentences * tokens * (linear + attention)


def make_goals(quick: bool, threads: int, folder: Path) -> list[Goal]:
    shapes = QUICK_SHAPES if quick else minilm.SHAPES

    @functools.cache
    def texts() -> Texts:
        return Texts(80 if quick else 800, shapes[1])

    @functools.cache
    def truth() -> Any:
        return texts().embed(Sentence())

    def judge(encode: Encode, is_ours: bool) -> Parity:
        got, floor = texts().embed(encode), MIN_COSINE if is_ours else PEER_COSINE
        mean = cosine(got, truth())
        kept = float((minilm.nearest(got) == minilm.nearest(truth())).float().mean())
        figures = {"cosine": mean, "neighbours": kept}
        return Parity(mean >= floor, f"cosine {mean:.4f}, neighbours {kept:.3f}", figures)

    sides = systems(texts, threads, folder, quick)
    bench = Workbench(judge, ["transformers", minilm.MODEL_PACKAGE])

    def goal(shape: Shape) -> Goal:
        def contenders() -> list[Any]:
            def call(encode: Encode) -> Callable[[int], object]:
                batch = texts().batch(shape)
                return lambda _: encode(*batch)

            return [bench.contender(side, call) for side in sides]

        label = f"all-MiniLM-L6-v2, {shape[0]}x{shape[1]} tokens"
        case = Case("minilm", label, operations(*shape), "GOP/s", "peak", contenders)
        names = [side.name for side in sides if side.ours and not side.why_not]
        return Goal(case, [] if quick else [bound for name in names for bound in bounds(name, shape)])

    return [goal(shape) for shape in shapes]


def bounds(name: str, shape: Shape) -> list[Bound]:
    def quality(figure: str, least: float) -> Bound:
        text = f"{figure} >= {least:.4f}"
        return Bound(text, lambda row, _: row.figures[figure], lambda v: f"{v:.4f}", lambda v: v >= least)

    bf16, best = RATIOS[shape]
    asked = [quality(*item) for item in MIN_TARGETS.items()]
    asked += [times_best(bf16, "torch bf16"), times_best(best)]
    return [replace(bound, text=f"{name}: {bound.text}", row=name) for bound in asked]


# ---- the systems


def systems(texts: Callable[[], Texts], threads: int, folder: Path, quick: bool) -> list[System]:
    traced = functools.cache(lambda: openvino_model(texts()))  # for three of them
    asymmetric = "symmetric" in octavo_nn.Int8Dynamic.__dataclass_fields__
    sides = [
        ours("octavo", int8),
        ours("octavo fused", lambda: fused(texts(), int8()), provides("fuse_")),
        ours("octavo asymmetric, float embeddings", accurate, asymmetric),
        ours(
            "octavo fused, asymmetric, float embeddings",
            lambda: fused(texts(), accurate()),
            provides("fuse_") and asymmetric,
        ),
        ours(
            "octavo compiled", lambda: torch.compile(int8(), backend="octavo", dynamic=False), is_compiler()
        ),
        System("torch f32", Sentence),
        System("torch bf16", lambda: Sentence("bfloat16")),
        System("torch quantize_dynamic", torch_dynamic),
        System("torchao int8 dynamic, compiled", torchao_dynamic, ["torchao"]),
        System(
            "onnxruntime quantize_dynamic, fused",
            lambda: ort_runner(ort_quantized(texts(), folder), threads),
            ["onnxruntime", "onnx"],
        ),
        System(
            "openvino bf16",
            lambda: openvino_runner(traced(), threads, INFERENCE_PRECISION_HINT="bf16"),
            ["openvino"],
        ),
        System(
            "openvino int8 weights, dynamic",
            lambda: openvino_runner(nncf_weights(traced()), threads),
            ["openvino", "nncf"],
        ),
        System(
            "openvino + nncf static int8",
            lambda: openvino_runner(nncf_static(traced(), texts()), threads),
            ["openvino", "nncf"],
        ),
    ]
    return without_compilers(sides) if quick else sides


def int8() -> Any:
    return octavo.quantize_(Sentence("bfloat16"))


def accurate() -> Any:
    """Without what costs the most accuracy here: int8 embeddings, and activations without a zero point."""
    config: dict[str | type[torch.nn.Module], Any] = {torch.nn.Embedding: None}
    config[torch.nn.Module] = octavo.Int8Dynamic(symmetric=False)
    return octavo.quantize_(Sentence("bfloat16"), config)


def fused(texts: Texts, model: Any) -> Any:
    return octavo_nn.fuse_(model, texts.judged[0])


def torch_dynamic() -> Any:
    quantization = torch.ao.quantization
    config = {torch.nn.Linear: quantization.per_channel_dynamic_qconfig}
    return quantization.quantize_dynamic(Sentence(), config, inplace=True)  # type: ignore[no-untyped-call]


def torchao_dynamic() -> Any:
    torchao = importlib.import_module("torchao.quantization")
    model = Sentence("bfloat16")
    torchao.quantize_(model, torchao.Int8DynamicActivationInt8WeightConfig())
    return torch.compile(model, dynamic=False)


def ort_quantized(texts: Texts, folder: Path) -> Path:
    """Per channel, after onnxruntime's own fusions: they know this model by the old exporter's graph, with
    the attention written out."""
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    quantization = importlib.import_module("onnxruntime.quantization")
    exported, fused, quantized = (folder / f"minilm_{name}.onnx" for name in ("f32", "fused", "int8"))
    names, axes = ["input_ids", "attention_mask"], {0: "sentences", 1: "tokens"}
    torch.onnx.export(
        Sentence(attn_implementation="eager"),
        texts.judged[0],
        str(exported),
        dynamo=False,
        input_names=names,
        dynamic_axes=dict.fromkeys(names, axes),
        opset_version=17,
    )
    model = optimizer.optimize_model(str(exported), model_type="bert", num_heads=12, hidden_size=384)
    model.save_model_to_file(str(fused))
    kind, untyped = quantization.QuantType.QInt8, {"DefaultTensorType": 1}  # of fused nodes; 1 is float32
    quantization.quantize_dynamic(fused, quantized, per_channel=True, weight_type=kind, extra_options=untyped)
    return quantized


def openvino_model(texts: Texts) -> Any:
    openvino = importlib.import_module("openvino")
    return openvino.convert_model(Sentence(), example_input=texts.judged[0])


def nncf_weights(model: Any) -> Any:
    nncf = importlib.import_module("nncf")
    return nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)


def nncf_static(model: Any, texts: Texts) -> Any:
    nncf = importlib.import_module("nncf")
    data = [{0: ids.numpy(), 1: mask.numpy()} for ids, mask in texts.calibration]
    return nncf.quantize(
        model.clone(), nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(data)
    )
