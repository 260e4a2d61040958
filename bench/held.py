"""Everybody held to one instruction set. The libraries read these variables when they load: such a run is a
process of its own, started with them.

What each of them holds was seen on a machine with AMX: oneDNN's int8 and bf16 products; torch's own loops;
FBGEMM (the "x86" engine), which goes on at 2.5 times the AVX2 rate with the first two alone; MKL's f32
products, likewise. onnxruntime and OpenVINO have no such switch, and torch.compile says -march=native.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment(octavo: str, onednn: str, aten: str, fbgemm: str, mkl: str) -> dict[str, str]:
    return {
        "OCTAVO_ISA": octavo,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "ATEN_CPU_CAPABILITY": aten,
        "FBGEMM_ENABLE_INSTRUCTIONS": fbgemm,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
    }


ENVIRONMENTS = {
    "avx2": environment("avx2", "AVX2", "avx2", "AVX2", "AVX2"),
    "avxvnni": environment("avxvnni", "AVX2_VNNI", "avx2", "AVX2", "AVX2"),
    "avx512vnni": environment("avx512vnni", "AVX512_CORE_VNNI", "avx512", "AVX512_E1", "AVX512_E1"),
}


def held_isa(variables: Mapping[str, str] = os.environ) -> str | None:
    """What this process was started to be held to."""
    for isa, wanted in ENVIRONMENTS.items():
        if wanted.items() <= variables.items():
            return isa
    return None
