"""tests/cuda/check_resources.py: what it reads from a compiler's report, and what it complains about."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cuda"))

import check_resources as check
from check_resources import Kernel, Resources

HERE = Path(__file__).parent / "cuda"
SPACE = "_ZN6octavo4cuda36_GLOBAL__N__d1bb9dd3_4_s_cu_42590308"
REPORT = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SPACE}9gemm_rowsIdLi100EEEvPKT_PS3_l' for 'sm_80'
ptxas info    : Function properties for {SPACE}9gemm_rowsIdLi100EEEvPKT_PS3_l
    800 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 254 registers, used 1 barriers, 800 bytes cumulative stack size, 2048 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 268.631 ms
ptxas info    : Compiling entry function '{SPACE}5otherILi3ELb1EEEvNS1_4ArgsE' for 'sm_90a'
ptxas info    : Function properties for {SPACE}5otherILi3ELb1EEEvNS1_4ArgsE
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 10.226 ms
"""  # noqa: E501
GEMM = Kernel("s", "gemm_rows<double, 100>", "sm_80")
OTHER = Kernel("s", "other<3, true>", "sm_90a")
FOUND = {GEMM: Resources(254, 2048, 800), OTHER: Resources(10, 0, 12)}

needs_filt = pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")


@needs_filt
def test_a_report_is_read() -> None:
    assert check.named(check.parse("s", REPORT)) == FOUND


def test_a_report_without_kernels_has_none() -> None:
    assert check.named(check.parse("s", "ptxas info    : 0 bytes gmem\n")) == {}


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void octavo::cuda::(anonymous namespace)::rows<float, 8>(float const*, long)", "rows<float, 8>"),
        ("octavo::cuda::(anonymous namespace)::plain(float*)", "plain"),
        ("void octavo::cuda::nm<(octavo::DType)2, 4>(octavo::Segment)", "nm<(DType)2, 4>"),
    ],
)
def test_names_are_short(signature: str, name: str) -> None:
    assert check.short(signature) == name


def test_a_table_is_what_was_written() -> None:
    text = check.write_table(FOUND, "nvcc 13.0.88")
    assert check.read_table(text) == FOUND
    assert check.compiler_of(text) == "nvcc 13.0.88"
    assert check.compiler_of("") == ""


def test_what_is_pinned_passes() -> None:
    found = {OTHER: FOUND[OTHER]}
    assert check.complaints(found, found, same_compiler=True) == []
    grown = {OTHER: Resources(18, 0, 12)}
    assert check.complaints(grown, found, same_compiler=True) == []


@pytest.mark.parametrize(
    ("got", "complaint"),
    [
        (Resources(19, 0, 12), "expected about 10 registers, got 19"),
        (Resources(10, 4, 12), "expected 0 bytes of shared memory, got 4"),
        (Resources(10, 0, 16), "expected 12 bytes of stack or spills, got 16"),
    ],
)
def test_growth_is_complained_about(got: Resources, complaint: str) -> None:
    pinned = {OTHER: FOUND[OTHER]}
    said = check.complaints({OTHER: got}, pinned, same_compiler=True)
    assert said == [f"s: other<3, true> (sm_90a): {complaint}"]
    assert check.complaints({OTHER: got}, pinned, same_compiler=False) == []


def test_kernels_come_and_go_through_the_table() -> None:
    other = {OTHER: FOUND[OTHER]}
    assert check.complaints(other, {}, True) == ["s: other<3, true> (sm_90a): not in the table"]
    assert check.complaints({}, other, True) == ["s: other<3, true> (sm_90a): in the table, but not compiled"]


@pytest.mark.parametrize("same", [True, False])
def test_products_never_spill(same: bool) -> None:
    said = check.complaints(FOUND, FOUND, same)
    assert said == ["s: gemm_rows<double, 100> (sm_80): 800 bytes of stack or spills, expected none"]


def test_warnings_are_found() -> None:
    assert check.warnings(REPORT) == []
    lines = [
        's.cu(6): warning #177-D: variable "unused" was declared but never referenced',
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored",
        "ptxas warning : Registers are spilled to local memory",
    ]
    assert check.warnings("\n".join([*lines, REPORT])) == lines


def test_the_module_is_small_and_stands_alone() -> None:
    alone = "\tlibc.so.6 => /lib/libc.so.6\n\tlibpthread.so.0 => /lib/libpthread.so.0\n"
    assert check.module_complaints(8 << 20, alone) == []
    said = check.module_complaints((8 << 20) + 1, alone + "\tlibcuda.so.1 => not found\n\tlibc10_cuda.so\n")
    assert said == [
        "the module links libcuda.so",
        "the module links libc10_cuda.so",
        "the module: expected at most 8388608 bytes, got 8388609",
    ]


def test_without_a_build_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="make cuda"):
        check.main([str(tmp_path)])


@pytest.mark.parametrize("status", [0, 3])
def test_a_report_is_kept_beside_its_object(tmp_path: Path, status: int) -> None:
    compiler = tmp_path / "compiler"
    said = "ptxas info    : Used 8 registers\nfile.cu: warning: careful\n"
    compiler.write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexit {status}\n")
    compiler.chmod(0o755)
    command = [HERE / "keep_report.sh", compiler, "-c", "file.cu", "-o", tmp_path / "file.cu.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "file.cu: warning: careful\n")
    assert (tmp_path / "file.cu.o.report").read_text() == said


def test_the_pinned_table_can_be_read() -> None:
    if not check.TABLE.exists():
        pytest.skip("no kernel is pinned yet")
    pinned = check.read_table(check.TABLE.read_text())
    assert pinned
    assert not any(r.local for key, r in pinned.items() if check.HOT.search(key.name))
