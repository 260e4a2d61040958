"""The house stands on its floors: imports only run down, and a folder holds no ring.

Read are the imports of every file with `ast`, those inside functions too; those under TYPE_CHECKING are for
type checkers alone. What a lower floor needs of a higher one is handed to it.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent.parent
PACKAGE, SOURCES = HERE / "python/octavo", HERE / "csrc"

# From the ground up. The longest of these paths that a file begins with is its floor; each file has one.
FLOORS = [
    ["version.py"],
    ["reference/"],
    ["runtime/"],
    ["ops/"],
    ["torch_ops/"],
    ["optim/"],
    ["nn/configs.py", "nn/kinds.py"],
    ["nn/layers/", "nn/prune/"],
    ["nn/convert/"],
    ["nn/fuse/"],
    ["nn/__init__.py"],
    ["storage/", "report.py", "parallel/"],
    ["export/", "compress/", "serving/"],
    ["integrations/", "cli.py", "old_paths.py", "__init__.py"],
]
NATIVE, ITS_OWNER = ("_core", "_cuda"), "runtime/backends.py"


def problems(package, floors=FLOORS):
    """What is wrong with the imports of a package, a line each."""
    imports = {name: dict(imports_of(package, name)) for name in sorted(files_of(package))}
    found = []
    for name, targets in imports.items():
        floor = floor_of(name, floors)
        if floor is None:
            found.append(f"{name}: no floor names it")
        for target, line in targets.items():
            if target in NATIVE:
                if name != ITS_OWNER:
                    found.append(f"{name}:{line} imports {target}, which only {ITS_OWNER} may")
                continue
            above = floor_of(target, floors)
            if floor is not None and above is not None and above > floor:
                found.append(f"{name}:{line} imports {target}, upward: floor {floor + 1} to {above + 1}")
    return found + rings(imports)


def files_of(package):
    return [path.relative_to(package).as_posix() for path in package.rglob("*.py")]


def floor_of(name, floors):
    """The index of its floor, None for a file that has none."""
    fits = [(len(path), i) for i, paths in enumerate(floors) for path in paths if is_at(name, path)]
    return max(fits)[1] if fits else None


def is_at(name, path):
    return name.startswith(path) if path.endswith("/") else name == path


# ---- what a file imports ----


def imports_of(package, name):
    """(file of the package or native module, line) of each import, the first line of each last."""
    found = []
    tree = ast.parse((package / name).read_text(), name)
    home = name.split("/")[:-1]
    for node in running(tree):
        for parts, line in modules_of(node, home):
            found.append((file_of(package, parts), line))
    return [(target, line) for target, line in reversed(found) if target != name]


def running(node):
    """Every node but what stands under `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    else:
        yield node
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from running(child)


def modules_of(node, home):
    """The names, in parts below the package, that a statement or a call asks of it."""
    if isinstance(node, ast.Import):
        dotted = [(0, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = f"{node.module}." if node.module else ""
        dotted = [(node.level, base + alias.name) for alias in node.names]
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called, text = ast.unparse(node.func).rpartition(".")[2], node.args[0].value
        if called not in ("import_module", "__import__") or not isinstance(text, str):
            return
        plain = text.lstrip(".")
        dotted = [(len(text) - len(plain), plain)]
    else:
        return
    for level, name in dotted:
        parts = [part for part in name.split(".") if part]
        if level:
            yield home[: len(home) + 1 - level] + parts, node.lineno
        elif parts[0] == "octavo":
            yield parts[1:], node.lineno


def file_of(package, parts):
    """Where a dotted name leads: its longest beginning that is a module; the rest are names in that one."""
    if parts and parts[0] in NATIVE:
        return parts[0]
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if (package / name).exists():
                return name
    return "__init__.py"


# ---- rings ----


def rings(imports):
    """Circles among the files and folders of each folder, whoever in them imports."""
    found = {}
    folders = {"", *(str(parent) + "/" for name in imports for parent in Path(name).parents if parent.name)}
    for folder in sorted(folders):
        graph = {}
        for name, targets in imports.items():
            for target, line in targets.items():
                if name.startswith(folder) and target.startswith(folder) and target not in NATIVE:
                    a, b = (folder + each[len(folder) :].split("/")[0] for each in (name, target))
                    if a != b:
                        graph.setdefault(a, {}).setdefault(b, f"{name}:{line}")
        for start in sorted(graph):
            path = shortest_ring(graph, start)
            if path:
                steps = [f"{b} (in {graph[a][b]})" for a, b in pairwise(path)]
                found.setdefault(frozenset(path), f"a ring: {' -> '.join([path[0], *steps])}")
    return list(found.values())


def shortest_ring(graph, start):
    paths, seen = deque([[start]]), set()
    while paths:
        path = paths.popleft()
        for following in sorted(graph.get(path[-1], ())):
            if following == start:
                return [*path, start]
            if following not in seen:
                seen.add(following)
                paths.append([*path, following])
    return None


# ---- the sources ----


def test_imports_only_run_down():
    found = problems(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_only_bindings_include_pybind11():
    users = [
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*")
        if path.is_file() and re.search(r"#\s*include\s*[<\"]pybind11", path.read_text())
    ]
    assert users
    assert all(user.startswith("bindings") for user in users), users


# ---- the test itself ----

GOOD = {
    "__init__.py": "from .ops import quantize\nfrom . import nn\n",
    "version.py": "",
    "reference/__init__.py": "from .numpy import quantize\n",
    "reference/numpy.py": "import numpy\nfrom ..version import __version__\n",
    "runtime/backends.py": "from importlib import import_module\ncore = import_module('octavo._core')\n",
    "ops/__init__.py": "from .quantize import quantize\n",
    "ops/quantize.py": "from .. import reference\nimport octavo.runtime.backends, octavo.ops.op\n",
    "ops/op.py": "",
    "nn/__init__.py": "from .layers.linear import Linear\n",
    "nn/configs.py": "if TYPE_CHECKING:\n    from .fuse.graph import Graph\nelse:\n    import ast\n",
    "nn/layers/linear.py": "from ...ops import quantize\nfrom ..configs import Dynamic\n",
    "nn/fuse/graph.py": "import octavo.nn.layers.linear\n",
    "report.py": "",
    "storage/files.py": "",
    "storage/state.py": "",
}


def write(folder, **changed):
    for name, text in (
        GOOD | {name.replace("__", "/") + ".py": text for name, text in changed.items()}
    ).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_good_house(tmp_path):
    assert problems(write(tmp_path)) == []


def test_upward_arrows_are_found(tmp_path):
    function = "def f():\n    from ..nn import Linear\n"
    named = "import importlib\nimportlib.import_module('..nn.configs', __package__)\n"
    found = problems(write(tmp_path, ops__op=function, runtime__pool=named, reference__torch="import octavo"))
    assert [line for line in found if "ring" not in line] == [
        "ops/op.py:2 imports nn/__init__.py, upward: floor 4 to 11",
        "reference/torch.py:1 imports __init__.py, upward: floor 2 to 14",
        "runtime/pool.py:2 imports nn/configs.py, upward: floor 3 to 7",
    ]


def test_a_ring_of_files_is_found(tmp_path):
    lazy = "def f():\n    return __import__('octavo.storage.state')\n"
    found = problems(write(tmp_path, storage__files=lazy, storage__state="from . import files\n"))
    assert found == [
        "a ring: storage/files.py -> storage/state.py (in storage/files.py:2)"
        " -> storage/files.py (in storage/state.py:1)"
    ]


def test_a_ring_of_folders_is_found_where_files_have_none(tmp_path):
    tree = write(tmp_path, storage__files="from ..report import f\n", report="from .storage import state\n")
    (tmp_path / "storage/__init__.py").write_text("")
    assert problems(tree) == [
        "a ring: report.py -> storage (in report.py:1) -> report.py (in storage/files.py:1)"
    ]


def test_a_file_without_a_floor_is_found(tmp_path):
    found = problems(write(tmp_path, nn__helpers="", utils=""))
    assert found == ["nn/helpers.py: no floor names it", "utils.py: no floor names it"]


def test_who_imports_the_native_module_is_found(tmp_path):
    found = problems(
        write(tmp_path, ops__op="from .. import _core\n", nn__configs="from octavo import _cuda\n")
    )
    assert found == [
        "nn/configs.py:1 imports _cuda, which only runtime/backends.py may",
        "ops/op.py:1 imports _core, which only runtime/backends.py may",
    ]
