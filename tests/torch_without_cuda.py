"""Makes a CUDA build of PyTorch importable without the CUDA libraries that it links to, for tests on the CPU.

It changes the torch of the environment that runs it.

PyPI has the older versions of torch for x86-64 as a CUDA build only, and its CUDA libraries are 3 GB more.
Without a GPU it computes nothing with them, but the loader wants each library, symbol and version. One
library that has the symbols stands in for all of them: whatever is called says that there is no device.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
from pathlib import Path

_SYMBOL = re.compile(r"(?:__cuda|cu|nccl|nvrtc|nvshmem)")
_LIBRARY = re.compile(r"lib(?:cu|nccl|nv).*\.so\.\d+")
_NO_DEVICE = 100  # cudaErrorNoDevice


def stand_in(folder: Path) -> None:
    """folder: torch/lib, the last of the run paths of what is in it."""
    symbols, libraries = dict[str, str](), set[str]()  # by name, the version that is asked for, or ""
    for each in folder.glob("*.so"):
        found = _found(r"^ +U ([^@\s]+)@?(\S*)", "nm", "-D", "--undefined-only", each)
        symbols.update({name: version for name, version in found if _SYMBOL.match(name)})
        libraries.update(filter(_LIBRARY.fullmatch, _found(r"\(NEEDED\).*\[(.+)\]", "readelf", "-d", each)))
    if not libraries:  # a build for the CPU
        return
    source = [f"int no_device(void) {{ return {_NO_DEVICE}; }}"]
    source += [f'int {name}(void) __attribute__((alias("no_device")));' for name in symbols]
    script = [
        f"{version} {{ {' '.join(f'{name};' for name in symbols if symbols[name] == version)} }};"
        for version in {*symbols.values()} - {""}
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as version_script:
        version_script.write("\n".join(script))
        version_script.flush()
        library = folder / "libno_cuda.so"
        link = ["-shared", "-fPIC", f"-Wl,--version-script={version_script.name}", "-o", str(library)]
        subprocess.run(["cc", "-x", "c", "-", *link], check=True, input="\n".join(source), text=True)
    for name in libraries:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library.name)


def _found(pattern: str, *command: str | Path) -> list[str]:
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(pattern, text, re.MULTILINE)


if __name__ == "__main__":
    stand_in(Path(sysconfig.get_path("platlib")) / "torch/lib")
