"""Runs the Python examples of one page, each with names of its own: python tests/run_examples.py PAGE.

A block of ```text right after an example is what it prints, `...` standing for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
from pathlib import Path

EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def main(page: Path) -> None:
    text = page.read_text()
    for match in EXAMPLE.finditer(text):
        code, expected = match.groups()
        # with the page's line numbers in tracebacks
        source = "\n" * text.count("\n", 0, match.start(1)) + code
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(page), "exec"), {"__name__": "__main__"})
        found = printed.getvalue()
        if expected is not None and not doctest.OutputChecker().check_output(expected, found, LENIENT):
            line = text.count("\n", 0, match.start(2)) + 1
            sys.exit(f"{page}:{line}: expected\n{expected}\ngot\n{found}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
