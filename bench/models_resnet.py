"""A network of ResNet-18's shape with random weights: 3x224x224 images to 1000 logits."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import octavo
from common import Case, Parity
from goals import Goal
from models_systems import PEER_COSINE, System, Workbench, at_least_cosine, ort_runner, ours, provides

Net = Callable[[Any], Any]  # f32 images [B, 3, H, W] -> logits [B, 1000]

BATCHES, IMAGE, STAGES = (1, 8), 224, (64, 128, 256, 512)
QUICK_BATCHES, QUICK_IMAGE, QUICK_STAGES = (1, 2), 64, (16, 32)
MIN_COSINE = 0.99  # of octavo's, or it is refused
CALIBRATION = 8  # images


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 where the shape changes. BN is folded."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)
        self.relu, self.relu_out = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.relu(self.first(x)))
        out: Tensor = self.relu_out(y + self.shortcut(x))
        return out


def conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """He's initialization, then a batch norm with statistics of its own, folded into it."""
    module = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    norm = nn.BatchNorm2d(outputs)
    for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.running_var, 0.5, 1.5), (norm.bias, -0.2, 0.2)):
        assert tensor is not None
        nn.init.uniform_(tensor, low, high)
    return fuse_conv_bn_eval(module.eval(), norm.eval())


def resnet(stages: Sequence[int]) -> nn.Module:
    """Two blocks per stage, each later stage at half the resolution."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [conv(3, stages[0], 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    inputs = stages[0]
    for stage, width in enumerate(stages):
        layers += [Block(inputs, width, 1 if stage == 0 else 2), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)).eval()


def images(count: int, size: int, seed: int) -> Any:
    """Smooth noise: neighbouring pixels are alike, as in photographs."""
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def operations(model: nn.Module, size: int) -> float:
    """Of the convolutions and the linear layer on one image."""
    counted = 0.0

    def count(module: Any, _: Any, out: Any) -> None:
        nonlocal counted
        counted += 2.0 * module.weight[0].numel() * out.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    model(images(1, size, 0))
    for hook in hooks:
        hook.remove()
    return counted


def make_goals(quick: bool, threads: int, folder: Path) -> list[Goal]:
    size, stages = (QUICK_IMAGE, QUICK_STAGES) if quick else (IMAGE, STAGES)
    model = functools.cache(lambda: resnet(stages))
    judged = functools.cache(lambda: images(2 * CALIBRATION, size, seed=2))
    truth = functools.cache(lambda: model()(judged()))

    def judge(net: Net, is_ours: bool) -> Parity:
        got = torch.cat([net(image) for image in judged().split(1)])
        return at_least_cosine(got, truth(), MIN_COSINE if is_ours else PEER_COSINE)

    sides = systems(model, images(CALIBRATION, size, seed=1), threads, folder)
    bench = Workbench(judge)

    def goal(batch: int) -> Goal:
        x = images(batch, size, seed=3)

        def call(net: Net) -> Callable[[int], object]:
            return lambda _: net(x)

        label = f"ResNet-18's shape, {batch}x3x{size}x{size}"
        work = batch * operations(model(), size)
        sided = lambda: [bench.contender(side, call) for side in sides]  # noqa: E731
        return Goal(Case("resnet", label, work, "GOP/s", "peak", sided), [])

    return [goal(batch) for batch in (QUICK_BATCHES if quick else BATCHES)]


# ---- the systems


def systems(model: Callable[[], Any], calibration: Any, threads: int, folder: Path) -> list[System]:
    return [
        ours("octavo", lambda: int8(model()), provides("Int8Conv2d")),
        ours("octavo, channels_last", lambda: channels_last(int8(model())), provides("Int8Conv2d")),
        System("torch f32", model),
        System("torch f32, channels_last", lambda: channels_last(model())),
        System("torch bf16, channels_last", lambda: bf16(model())),
        System("torch FX static int8, channels_last", lambda: torch_static(model(), calibration)),
        System(
            "onnxruntime f32",
            lambda: ort_runner(export(model(), calibration, folder), threads),
            ["onnxruntime", "onnx"],
        ),
        System(
            "onnxruntime static int8, QDQ",
            lambda: ort_runner(ort_static(export(model(), calibration, folder), calibration), threads),
            ["onnxruntime", "onnx"],
        ),
        System(
            "onnxruntime dynamic int8",
            lambda: ort_runner(ort_dynamic(export(model(), calibration, folder)), threads),
            ["onnxruntime", "onnx"],
        ),
    ]


def int8(model: nn.Module) -> Any:
    return octavo.quantize_(copy.deepcopy(model))


def channels_last(model: nn.Module) -> Net:
    """The model and its input: the copy of an image is part of the call, as for everybody's own layout."""
    moved = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: moved(x.contiguous(memory_format=torch.channels_last))


def bf16(model: nn.Module) -> Net:
    net = channels_last(copy.deepcopy(model).bfloat16())
    return lambda x: net(x.bfloat16())


def torch_static(model: nn.Module, calibration: Any) -> Net:
    """Deprecated, and the way that torch itself still brings; PT2E's lowering is inductor's and torchao's."""
    quantization = importlib.import_module("torch.ao.quantization")
    fx = importlib.import_module("torch.ao.quantization.quantize_fx")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, "x86"
    try:
        mapping = quantization.get_default_qconfig_mapping("x86")
        observed = fx.prepare_fx(copy.deepcopy(model), mapping, (calibration,))
        observed(calibration)
        return channels_last(fx.convert_fx(observed))
    finally:
        torch.backends.quantized.engine = before


def export(model: nn.Module, example: Any, folder: Path) -> Path:
    path = folder / "resnet.onnx"
    if not path.exists():
        torch.onnx.export(
            model, (example,), str(path), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "images"}}
        )
    return path


def ort_static(path: Path, calibration: Any) -> Path:
    quantization = importlib.import_module("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        left = iter([{"x": image.numpy()} for image in calibration.split(1)])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantized, kinds = path.with_name("resnet_static.onnx"), quantization.QuantType
    quantization.quantize_static(
        path, quantized, Images(), per_channel=True, activation_type=kinds.QUInt8, weight_type=kinds.QInt8
    )
    return quantized


def ort_dynamic(path: Path) -> Path:
    """u8 weights: its ConvInteger has no kernel for signed ones."""
    quantization = importlib.import_module("onnxruntime.quantization")
    quantized = path.with_name("resnet_dynamic.onnx")
    quantization.quantize_dynamic(path, quantized, weight_type=quantization.QuantType.QUInt8)
    return quantized
