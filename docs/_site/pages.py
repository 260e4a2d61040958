"""What octavo adds to MkDocs: pages from outside of docs/, links to the reference, docstrings as Markdown.

mkdocs.yml names it twice: it is a hook of MkDocs, and an extension of griffe, which reads the docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Files beside docs/ that the site shows too; LICENSE is only copied.
FROM_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# What the reference describes: links to anything else would be broken ones.
PUBLIC = {
    name
    for page in (DOCS / "reference").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, name in FROM_ROOT.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        for other, path in FROM_ROOT.items():
            text = text.replace(f"]({path})", f"]({other})")
        files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, "LICENSE", abs_src_path=str(ROOT / "LICENSE")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Makes every public name in backticks a link, outside of code blocks and headings."""
    parts = re.split(r"(^```.*?^```$|^#[^\n]*$|^:::[^\n]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"`(octavo\.[\w.]+)`", _code, parts[i])
    return "".join(parts)


def _code(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{name}]" if name in PUBLIC else f"`{name}`"


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            known = {each.name for each in getattr(obj, "parameters", ())} | obj.members.keys()
            obj.docstring.value = as_markdown(obj.docstring.value, known)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Gives a NamedTuple the signature that it has: griffe knows only that of dataclasses."""
        if "NamedTuple" not in map(str, cls.bases):
            return
        positional = griffe.ParameterKind.positional_or_keyword
        fields = [
            griffe.Parameter(each.name, annotation=each.annotation, default=each.value, kind=positional)
            for each in cls.attributes.values()
        ]
        itself = griffe.Parameter("self", kind=positional)
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(itself, *fields)))

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Finds what a package imports under the name of the file that it is in: griffe finds the file."""
        for path in PUBLIC - {"octavo.nn"}:
            parent, _, name = path.rpartition(".")
            package = pkg.modules_collection[parent]
            found = package.members[name]
            if found.is_module:
                package.members[name] = griffe.Alias(name, found.members[name], parent=package)


def as_markdown(docstring: str, known: Collection[str]) -> str:
    """Turns the lines `name: text` of a docstring, the name being known, into a list; the rest stays."""
    name = "(?:" + "|".join(sorted(known, key=len, reverse=True)) + ")"
    names = re.compile(rf"({name}(?:, {name})*(?:\([\w, ]*\))?): ") if known else re.compile("(?!)")
    lines = [""]
    in_item = in_code = False
    for line in _one_item_a_line(docstring, names):
        text = line.strip()
        item = names.match(line)
        quoted = re.match(r'    ("\w+"): ', line)
        in_code = line.startswith("    ") and not in_item and (in_code or not lines[-1])
        if not text:
            in_item = False
            lines.append("")
        elif in_code:
            lines.append(line)
        elif item:
            if not in_item:  # the comment keeps this list apart from one before it
                lines += ["", "<!-- -->", ""]
            in_item = True
            code = ", ".join(f"`{each}`" for each in re.split(r", (?![^(]*\))", item[1]))
            lines.append(f"- {code}: {_escaped(line[item.end() :])}")
        elif line.startswith("- "):
            if lines[-1] and not lines[-1].startswith((" ", "- ")):
                lines.append("")
            lines.append("- " + _escaped(line[2:]))
        elif in_item and quoted:
            lines.append(f"    - `{quoted[1]}`: {_escaped(line[quoted.end() :])}")
        elif line.startswith(" "):
            lines.append(line[: len(line) - len(text)] + _escaped(text))
        else:
            if in_item:
                lines.append("")
            in_item = False
            lines.append(_escaped(line))
    return "\n".join(lines)


def _one_item_a_line(docstring: str, names: re.Pattern[str]) -> list[str]:
    """The lines of a docstring, broken where another item begins, as in `weight: ... . bias: ...`."""
    lines: list[str] = []
    for line in docstring.splitlines():
        if line.startswith("    ") or names.match(line):
            line = re.sub(rf"[.;] ({names.pattern})", r".\n\1", line)
        lines += line.split("\n")
    return lines


def _escaped(text: str) -> str:
    """Text, with its public names as links, that Markdown does not take for emphasis, tags or links."""
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]])", r"\\\1", parts[i]).replace("<", "&lt;")
        parts[i] = re.sub(r"octavo\.(?:\w|\\_|\.(?=\w))+", _name, parts[i])
    return "".join(parts)


def _name(match: re.Match[str]) -> str:
    name = match[0].replace("\\", "")
    return f"[`{name}`][{name}]" if name in PUBLIC else match[0]
