"""timm's and diffusers' models. Both import torchvision, whose kernels are built for a torch with CUDA."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .entry import Entry, Inputs

if found := find_spec("torchvision"):
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:  # what it registers for them has to be there
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )

import diffusers
import timm

# Of each family a small one; one of three is for the gate.
TIMM = """
    beit_base_patch16_224 eva02_tiny_patch14_224 swinv2_tiny_window8_256 edgenext_xx_small convnext_atto
    efficientnet_b0 mobilenetv3_small_050 resnet10t vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224
    xcit_nano_12_p16_224 maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224 mixer_s32_224 regnetx_002 levit_128s
    pvt_v2_b0 mobilevit_xxs
"""
MORE = """
    coat_tiny convit_tiny convnextv2_atto crossvit_tiny_240 davit_tiny densenet121 efficientformer_l1
    fastvit_t8 gcvit_xxtiny ghostnet_050 hrnet_w18_small mobileone_s0 mvitv2_tiny nest_tiny
    poolformer_s12 repvgg_a0
    resmlp_12_224 resnest14d resnetv2_50 rexnet_100 swin_tiny_patch4_window7_224 tiny_vit_5m_224
    twins_svt_small volo_d1_224
"""
SMALLER = {
    "beit_base_patch16_224": {"embed_dim": 192, "depth": 2, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2},
    "vit_tiny_patch16_224": {"depth": 2},
    "deit_tiny_patch16_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
    "mixer_s32_224": {"num_blocks": 2},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 1, 1), "embed_dim": 48},
}
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}  # fmt: skip


def _timm(names: str) -> dict[str, Entry]:
    return {name: Entry(partial(_build, name), partial(_image, name)) for name in names.split()}


def _build(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=10, **SMALLER.get(name, {}))


def _image(name: str) -> dict[str, Any]:
    size = timm.get_pretrained_cfg(name).input_size[-1]
    return {"x": torch.randn(1, 3, size, size)}


def _diffusers(name: str, inputs: Inputs, **config: Any) -> dict[str, Entry]:
    return {name: Entry(lambda: getattr(diffusers, name)(**config), inputs)}


def sample(channels: int = 4, **more: Any) -> dict[str, Any]:
    return {"sample": torch.randn(2, channels, 8, 8), **more}


def noisy(channels: int = 4, **more: Any) -> dict[str, Any]:
    return sample(channels, timestep=torch.tensor([3, 7]), **more)


def captioned() -> dict[str, Any]:
    return noisy(encoder_hidden_states=torch.randn(2, 5, 16))


def of_class() -> dict[str, Any]:
    labels = {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])}
    return {"hidden_states": torch.randn(2, 4, 8, 8), **labels}


TABLE: dict[str, Entry] = {
    **_timm(TIMM),
    **_diffusers(
        "UNet2DModel", partial(noisy, 3), **UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    ),
    **_diffusers("UNet2DConditionModel", captioned, **UNET, **ATTENTION, cross_attention_dim=16),
    **_diffusers(
        "AutoencoderKL", partial(sample, 3), block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    **_diffusers(
        "DiTTransformer2DModel", of_class, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        sample_size=8, num_embeds_ada_norm=16,
    ),
}  # fmt: skip
DEEP_TABLE = {**TABLE, **_timm(MORE)}
