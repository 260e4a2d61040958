"""README, CONTRIBUTING, docs: what they name exists, what they tell you to type runs, no link is dead."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(language: str, *pages: Path) -> list[str]:
    return [code for page in pages for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def spans() -> list[str]:
    """What stands in backticks in the running text, without repetition."""
    return sorted({span for page in PAGES for span in SPAN.findall(prose(page))})


def tree() -> list[str]:
    return [line.split()[0] for code in blocks("text", CONTRIBUTING) for line in code.splitlines()]


def is_path(span: str) -> bool:
    return re.fullmatch(r"[\w.<>*/-]+", span) is not None and (
        "/" in span or re.search(r"\.(py|pyi|md|txt|toml|h|cpp)$", span) is not None
    )


def is_command(span: str) -> bool:
    return re.match(r"(make|sh|pip|python) ", span) is not None


def commands() -> list[str]:
    lines = [line for code in blocks("sh", *PAGES) for line in code.splitlines()]
    return sorted({*lines, *filter(is_command, spans())})


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"


@pytest.mark.parametrize("path", sorted({*filter(is_path, spans()), *tree()}))
def test_path_exists(path: str) -> None:
    # Only a tree that has been used has .venv and build, and a test must also pass in a fresh one.
    if path != ".venv" and not path.startswith("build/"):
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/"))), path


@pytest.mark.parametrize("line", commands())
def test_command_runs(line: str) -> None:
    """Runs each command in the cheapest form that still fails when its name or an argument is wrong."""
    words = shlex.split(line)
    environment = {}
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
    tool = words[0].removeprefix(".venv/bin/")
    if tool == "make":
        run("make", "--dry-run", *words[1:])
    elif tool == "sh":
        run("sh", "-n", *words[1:])
        assert os.access(ROOT / words[1], os.X_OK)
    elif tool == "pip":
        for extra in re.findall(r"\[(\w+)\]", line):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra
        if importlib.util.find_spec("scikit_build_core") is None:
            pytest.skip("the build tools are not installed")
        options = ("--dry-run", "--no-deps", "--no-build-isolation", "--quiet")
        run(sys.executable, "-m", "pip", words[1], *options, *words[2:])
    elif tool == "python" and words[1:3] == ["-m", "pytest"]:
        if environment.get("OCTAVO_ISA") not in isas_available():
            pytest.skip("this machine or build lacks the ISA")
        run(sys.executable, "-m", "pytest", "--collect-only", "-q", *words[3:], environment=environment)
    elif tool == "python":
        run(sys.executable, *words[1:2], "--help", environment=environment)
    elif tool == "pre-commit":
        if importlib.util.find_spec("pre_commit") is None:
            pytest.skip("pre-commit is not installed")
        run(sys.executable, "-m", "pre_commit", "validate-config")
    else:
        pytest.fail(f"this test does not know how to check: {line}")


def isas_available() -> list[str]:
    try:
        from octavo import _core
    except ImportError:
        return []
    return _core.isas_available()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)], ids=name_of)
def test_examples_run(page: Path) -> None:
    if "import torch" in page.read_text():
        pytest.importorskip("torch")
    if not isas_available():
        pytest.skip("the native module is missing")
    run(sys.executable, "tests/run_examples.py", str(page))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The ids that a site gives the titles of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_errors_page_has_the_texts() -> None:
    """What the tables quote, but for `...`, is said somewhere in octavo."""
    said = [
        node.value
        for file in (ROOT / "python" / "octavo").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    page = ROOT / "docs" / "guides" / "errors.md"
    quoted = [
        span
        for cell in re.findall(r"^\| (`.+?) \|", page.read_text(), re.MULTILINE)
        for span in SPAN.findall(cell)
    ]
    for text in quoted:
        for part in text.split("..."):
            assert any(part in each for each in said), text


def test_site_has_every_page() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    own = {"index.md", "contributing.md", "changelog.md"}  # README, CONTRIBUTING and CHANGELOG
    assert sorted(listed) == sorted({page.relative_to(ROOT / "docs").as_posix() for page in PAGES[2:]} | own)


def test_reference_has_every_public_name() -> None:
    pytest.importorskip("torch")
    import octavo

    pages = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    described = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    # octavo.nn has some of octavo's names again: described once
    nn = {f"octavo.nn.{name}" for name in octavo.nn.__all__ if name not in octavo.__all__}
    assert described == {f"octavo.{name}" for name in octavo.__all__} | nn
    for name in octavo.nn.__all__:
        if name in octavo.__all__:
            assert getattr(octavo, name) is getattr(octavo.nn, name)


def test_reference_has_every_torch_op() -> None:
    torch = pytest.importorskip("torch")
    import octavo

    assert octavo.nn  # registers them
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    found = {name.removeprefix("octavo::") for name in names if name.startswith("octavo::")}
    listed = re.findall(r"^\| `(\w+)` \|", (REFERENCE / "torch_ops.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(found)


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target
    assert shutil.which("make")


def test_one_version() -> None:
    import octavo

    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert newest is not None
    assert declared is not None
    assert newest[1] == declared[1] == octavo.__version__


def test_package_holds_its_types() -> None:
    import octavo

    folder = Path(octavo.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()
