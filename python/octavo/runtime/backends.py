"""What is built, what this machine has, what was chosen and why.

The native modules `_core` and `_cuda` are imported here and nowhere else, the second one when the first array
on a device comes along. Environment, read once at import: OCTAVO_BACKEND (auto, native, reference),
OCTAVO_ISA (an ISA that this machine has), OCTAVO_REQUIRE=native (a missing native module is an ImportError
instead of a warning), OCTAVO_CUDA_UNPROVEN=1 (CUDA kernels run although they have never passed on a GPU).
"""

from __future__ import annotations

import functools
import operator
import os
import platform
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np

from ..version import __version__

BACKENDS = ("auto", "native", "reference")

native_error = ""
try:
    from .. import _core as _core
except ImportError as _error:
    _core = None  # type: ignore[assignment]
    native_error = str(_error) if find_spec("octavo._core") else "not built"

native = False  # whether the next call on CPU arrays runs the native kernels
cuda_unproven = False  # whether CUDA kernels run that have never passed on a GPU
_CUDA_CAPABILITY = 80  # what the CUDA kernels are built for at least
_backend = "auto"
_forced_by = {"backend": "", "isa": ""}  # what chose them, if anything did
_threads: int | None = None
_default_threads = 0
_warned: set[str] = set()


class Restore:
    """Undoes a setting at the end of a `with` block; outside of one the setting simply stays."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = undo

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()


def warn_once(message: str, stacklevel: int = 3) -> None:
    """Warns with a RuntimeWarning, the first time that this process says it."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)


@functools.cache
def cuda() -> tuple[Any, str]:
    """(the native CUDA module, ""), or (None, why it is missing); imports it."""
    try:
        from .. import _cuda
    except ImportError as error:
        return None, str(error) if find_spec("octavo._cuda") else "this build has no CUDA kernels"
    return _cuda, ""


@functools.cache
def why_not_cuda(device: int, families: tuple[str, ...]) -> str:
    """Why the CUDA kernels of these families do not run on this device; "" if they do."""
    module, missing = cuda()
    if module is None:
        return missing
    if device >= module.device_count():
        return "the CUDA kernels find no such device; the driver may be older than they need"
    capability = module.capability(device)
    if capability < _CUDA_CAPABILITY:
        return f"the CUDA kernels need sm_{_CUDA_CAPABILITY} or newer, and this device is sm_{capability}"
    proven = module.kernels()
    without = [family for family in families if family not in proven]
    if without:
        return f"there are no CUDA kernels for {without[0]}"
    if not cuda_unproven and not all(proven[family] for family in families):
        return (
            "these CUDA kernels have not passed their tests on a GPU yet, and run only with "
            "OCTAVO_CUDA_UNPROVEN=1"
        )
    return ""


def use_backend(name: str) -> Restore:
    """Chooses what runs, for the whole process: from now on, or inside a `with` block.

    "auto": the native kernels, or the reference where they are missing; "native"; "reference": the NumPy and
    torch definitions of every operation, on a device too. ValueError for another name, RuntimeError for
    "native" where the native module is missing. Also OCTAVO_BACKEND.
    """
    if name not in BACKENDS:
        raise ValueError(f"name: expected 'auto', 'native' or 'reference', got {name!r}")
    if name == "native" and _core is None:
        raise RuntimeError(
            f"name: expected a backend of this build, got 'native' without its module ({native_error})"
        )
    before = _backend, _forced_by["backend"]
    _set_backend(name, "use_backend")
    return Restore(lambda: _set_backend(*before))


def _set_backend(name: str, source: str) -> None:
    global _backend, native
    _backend, native = name, name != "reference" and _core is not None
    _forced_by["backend"] = source


def get_isa() -> str:
    """The instruction set of the native kernels, such as "avx2"; "none" without them."""
    return "none" if _core is None else _core.get_isa()


def force_isa(name: str) -> Restore:
    """Forces the native kernels to an instruction set, for the whole process: from now on, or inside a `with`
    block.

    Every ISA gives the same bits. ValueError for a name that is unknown, not built, or not on this machine.
    Also OCTAVO_ISA.
    """
    core = _core_with(name, "name")
    before = core.get_isa(), _forced_by["isa"]
    _set_isa(core, name, "force_isa")
    return Restore(lambda: _set_isa(core, *before))


def _set_isa(core: Any, name: str, source: str) -> None:
    core.set_isa(name)
    _forced_by["isa"] = source


def _core_with(isa: str, argument: str) -> Any:
    """The native module, if it has the ISA."""
    available = [] if _core is None else _core.isas_available()
    if isa not in available:
        known = "none: the native module is missing" if _core is None else ", ".join(available)
        raise ValueError(f"{argument}: expected an ISA of this machine ({known}), got {isa!r}")
    return _core


def why_reference() -> str:
    """Who asked for the reference; "" if nobody did."""
    return f"the reference, forced by {_forced_by['backend']}" if _backend == "reference" else ""


def reason() -> str:
    """Why the next call on CPU arrays runs what it runs."""
    if _backend == "reference":
        return why_reference()
    if _core is None:
        return f"the native module is missing: {native_error}"
    if _forced_by["isa"]:
        return f"{get_isa()}, forced by {_forced_by['isa']}"
    return f"{get_isa()}, the best that was detected"


def set_num_threads(n: int | None) -> None:
    """Sets the number of threads (>= 1) of the native kernels; None: back to get_num_threads' default."""
    global _threads
    if n is None:
        _threads = None
        return
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n: expected an int or None, got {type(n).__name__}") from None
    if isinstance(n, bool) or not 1 <= count <= 4096:
        raise ValueError(f"n: expected 1 to 4096 threads, got {n!r}")
    _threads = count


def get_num_threads() -> int:
    """The number of threads that the native kernels use at most.

    What set_num_threads set, else torch.get_num_threads() where torch is loaded, else OMP_NUM_THREADS, else
    the CPUs that this process may run on.
    """
    global _default_threads
    if _threads is not None:
        return _threads
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return torch.get_num_threads()  # type: ignore[no-any-return]
    if not _default_threads:
        _default_threads = 1 if _core is None else _core.default_threads()
    return _default_threads


def show_config() -> dict[str, Any]:
    """Prints and returns versions, ISAs (built, present, chosen), OpenMP runtime, threads, CUDA."""
    torch = sys.modules.get("torch")
    config: dict[str, Any] = {
        "octavo": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__ if torch is not None else "not loaded",
        "machine": platform.machine(),
        "backend": _backend,
        "native": "missing: " + native_error if _core is None else _core.__file__,
        "compiler": None if _core is None else _core.compiler(),
        "isas_built": [] if _core is None else _core.isas_built(),
        "isas_available": [] if _core is None else _core.isas_available(),
        "isa": get_isa(),
        "runs": f"native, {get_isa()}" if native else "reference",
        "reason": reason(),
        "threads": get_num_threads(),
        "threads_info": {} if _core is None else _core.threads_info(),
        "cuda_built": cuda()[0] is not None,
        "cuda_devices": _cuda_devices(torch),
        "cuda_kernels": _cuda_kernels(),
    }
    for key, value in config.items():
        print(f"{key:15} {value}")
    return config


def _cuda_devices(torch: Any) -> list[str]:
    if torch is not None and torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    module = cuda()[0]
    return [] if module is None else [f"sm_{module.capability(i)}" for i in range(module.device_count())]


def _cuda_kernels() -> dict[str, str] | str:
    """What is known of each family of CUDA kernels, or why there are none."""
    module, missing = cuda()
    if module is None:
        return missing
    switch = "run by OCTAVO_CUDA_UNPROVEN=1" if cuda_unproven else "off without OCTAVO_CUDA_UNPROVEN=1"
    return {
        family: "proven" if proven else f"unproven on a GPU: {switch}"
        for family, proven in module.kernels().items()
    }


def _read_environment() -> None:
    require = os.environ.get("OCTAVO_REQUIRE", "")
    if require not in ("", "native"):
        raise ValueError(f"OCTAVO_REQUIRE: expected 'native' or nothing, got {require!r}")
    backend = os.environ.get("OCTAVO_BACKEND", "") or "auto"
    if backend not in BACKENDS:
        raise ValueError(f"OCTAVO_BACKEND: expected 'auto', 'native' or 'reference', got {backend!r}")
    if _core is None:
        if require == "native" or backend == "native":
            raise ImportError(f"octavo: the native module is required but missing: {native_error}")
        if backend == "auto":
            warn_once(
                f"octavo: the native kernels are missing ({native_error}), so the slow NumPy and torch "
                "references run. OCTAVO_REQUIRE=native makes this an error; octavo.show_config() says more",
                stacklevel=4,
            )
    unproven = os.environ.get("OCTAVO_CUDA_UNPROVEN", "")
    if unproven not in ("", "0", "1"):
        raise ValueError(f"OCTAVO_CUDA_UNPROVEN: expected '1' or nothing, got {unproven!r}")
    global cuda_unproven
    cuda_unproven = unproven == "1"
    isa = os.environ.get("OCTAVO_ISA", "")
    if isa:  # without a look at the default: choosing AMX, even for a moment, changes the process
        _set_isa(_core_with(isa, "OCTAVO_ISA"), isa, "OCTAVO_ISA")
    _set_backend(backend, "OCTAVO_BACKEND")


_read_environment()
