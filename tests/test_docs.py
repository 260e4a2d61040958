"""README and CONTRIBUTING: what they name exists, what they tell you to type runs."""

from __future__ import annotations

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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for page in PAGES for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def spans() -> list[str]:
    """What stands in backticks or is linked to in the running text, without repetition."""
    text = "\n".join(BLOCK.sub("", page.read_text()) for page in PAGES)
    return sorted(set(re.findall(r"`([^`\n]+)`", text)) | set(re.findall(r"\]\(([^)#]+)\)", text)))


def tree() -> list[str]:
    return [line.split()[0] for code in blocks("text") for line in code.splitlines()]


def is_path(span: str) -> bool:
    return re.fullmatch(r"[\w.<>*/-]+", span) is not None and (
        "/" in span or re.search(r"\.(py|pyi|md|txt|toml|h|cpp)$", span) is not None
    )


def is_command(span: str) -> bool:
    return re.match(r"(make|sh|pip|python) ", span) is not None


def commands() -> list[str]:
    lines = [line for code in blocks("sh") for line in code.splitlines()]
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
    # Only a set-up tree has .venv, and a test must also pass outside of one.
    if path != ".venv":
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


@pytest.mark.parametrize("code", blocks("python"))
def test_example_runs(code: str) -> None:
    if "import torch" in code:
        pytest.importorskip("torch")
    if "force_isa" in code and not isas_available():
        pytest.skip("the native module is missing")
    run(sys.executable, "-c", code)


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
