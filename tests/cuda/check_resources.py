"""Holds the compiled CUDA module to tests/cuda/resources.txt: registers and memory of every kernel, and to no
warnings, a size and few libraries. Needs no GPU.

    python tests/cuda/check_resources.py build/cuda             # after `make cuda` has built there
    python tests/cuda/check_resources.py build/cuda --update    # pins what is there now
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("resources.txt")
MAX_MODULE_BYTES = 8 << 20
MORE_REGISTERS = 8  # that a kernel may take than the table says: compilers and small edits move a few
HOT = re.compile(r"gemm|gemv")  # kernels that have to keep everything in registers
NOT_LINKED = re.compile(r"lib(cuda|cudart|torch\w*|c10\w*)\.so")
WARNING = re.compile(r"warning|\bC75\d\d\b", re.IGNORECASE)  # C7508, C7510: ptxas gave up on what was asked

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Kernel(NamedTuple):
    file: str
    name: str
    arch: str


class Resources(NamedTuple):
    registers: int
    shared: int  # static shared memory in bytes
    local: int  # the larger of stack frame and spills in bytes


Table = dict[Kernel, Resources]


# ---- what the compiler said


def parse(file: str, report: str) -> Table:
    """The kernels of one file, by their mangled names."""
    found: Table = {}
    entry: Kernel | None = None
    local = 0
    for line in report.splitlines():
        if match := ENTRY.search(line):
            entry, local = Kernel(file, *match.groups()), 0
        elif match := LOCAL.search(line):  # also said of functions that the kernel calls
            local = max(local, *map(int, match.groups()))
        elif (match := USED.search(line)) and entry is not None:
            shared = SHARED.search(line)
            found[entry] = Resources(int(match[1]), int(shared[1]) if shared else 0, local)
            entry = None
    return found


def warnings(report: str) -> list[str]:
    return [line.strip() for line in report.splitlines() if WARNING.search(line)]


def short(signature: str) -> str:
    """The kernel's own name with its template arguments: no return type, namespaces, parameters."""
    name = re.sub(r"octavo::(cuda::)?|\(anonymous namespace\)::", "", signature)
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0 and i:
            name = name[:i]
            break
    return name.removeprefix("void ")


def demangle(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def named(kernels: Table) -> Table:
    keys = list(kernels)
    names = demangle([key.name for key in keys])
    return {key._replace(name=short(n)): kernels[key] for key, n in zip(keys, names, strict=True)}


# ---- the table


def read_table(text: str) -> Table:
    rows = [line.split(maxsplit=5) for line in text.splitlines() if line and not line.startswith("#")]
    return {
        Kernel(file, name, arch): Resources(int(registers), int(shared), int(local))
        for file, arch, registers, shared, local, name in rows
    }


def write_table(kernels: Table, compiler: str) -> str:
    lines = [
        f"# {compiler}",
        "# By tests/cuda/check_resources.py --update. Bytes: static shared memory; stack or spills.",
        f"# {'file':8} {'arch':7} {'registers':>9} {'shared':>6} {'local':>5}  kernel",
    ]
    for key, r in sorted(kernels.items()):
        lines.append(f"{key.file:10} {key.arch:7} {r.registers:9} {r.shared:6} {r.local:5}  {key.name}")
    return "\n".join(lines) + "\n"


def compiler_of(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ") if text else ""


def complaints(found: Table, pinned: Table, same_compiler: bool) -> list[str]:
    """What is not as the table says. Of another compiler only the names are compared."""
    said = [f"{show(key)}: not in the table" for key in sorted(found.keys() - pinned.keys())]
    said += [f"{show(key)}: in the table, but not compiled" for key in sorted(pinned.keys() - found.keys())]
    for key in sorted(found):
        got = found[key]
        if HOT.search(key.name) and got.local:
            said.append(f"{show(key)}: {got.local} bytes of stack or spills, expected none")
        if key not in pinned or not same_compiler:
            continue
        want = pinned[key]
        if got.registers > want.registers + MORE_REGISTERS:
            said.append(f"{show(key)}: expected about {want.registers} registers, got {got.registers}")
        if got.shared > want.shared:
            said.append(f"{show(key)}: expected {want.shared} bytes of shared memory, got {got.shared}")
        if got.local > want.local:
            said.append(f"{show(key)}: expected {want.local} bytes of stack or spills, got {got.local}")
    return said


def show(key: Kernel) -> str:
    return f"{key.file}: {key.name} ({key.arch})"


# ---- the module


def module_complaints(size: int, libraries: str) -> list[str]:
    said = [f"the module links {name[0]}" for name in NOT_LINKED.finditer(libraries)]
    if size > MAX_MODULE_BYTES:
        said.append(f"the module: expected at most {MAX_MODULE_BYTES} bytes, got {size}")
    return said


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compiler() -> str:
    release = re.search(r"V([\d.]+)", output("nvcc", "--version"))
    return f"nvcc {release[1] if release else 'unknown'}"


def one(paths: Iterable[Path], what: str) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise SystemExit(f"expected one {what}, got {len(found)}: run `make cuda`")
    return found[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the CUDA module against its pinned resources")
    parser.add_argument("build", type=Path, help="the build directory of `make cuda`")
    parser.add_argument("--update", action="store_true", help=f"write {TABLE.name}")
    args = parser.parse_args(argv)
    module = one(args.build.glob("_cuda*.so"), f"_cuda module in {args.build}")
    found: Table = {}
    said: list[str] = []
    for path in sorted(args.build.rglob("*.cu.o.report")):
        file, report = path.name.removesuffix(".cu.o.report"), path.read_text()
        found |= parse(file, report)
        said += [f"{file}: {line}" for line in warnings(report)]
    if not found:
        raise SystemExit(f"no report of a kernel in {args.build}: run `make cuda`")
    found = named(found)
    pinned = TABLE.read_text() if TABLE.exists() else ""
    if args.update:
        pinned = write_table(found, compiler())
        TABLE.write_text(pinned)
    same, table_of = compiler_of(pinned) == compiler(), compiler_of(pinned) or "nobody"
    if not same:
        print(f"{compiler()}: registers are not compared, the table is that of {table_of}")
    said += complaints(found, read_table(pinned), same)
    said += module_complaints(module.stat().st_size, output("ldd", str(module)))
    print(*said, sep="\n", end="\n" if said else "")
    size = module.stat().st_size / (1 << 20)
    print(f"{len(found)} kernels, module {size:.2f} MiB, {len(said)} complaints")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
