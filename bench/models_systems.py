"""What the parts of models.py have in common: systems built once, judged once, and timed in several cases."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import peers
from common import Contender, Parity
from goals import NOT_YET
from machine import optional

PEER_COSINE = 0.9  # a peer below this does not run the same model
octavo_nn = optional("octavo.nn")


@dataclass(frozen=True)
class System:
    """One way to run the model. `build()` returns what `call` and `judge` of its Workbench take."""

    name: str
    build: Callable[[], Any]
    needs: Sequence[str] = ()  # modules
    ours: bool = False
    why_not: str = ""


# ---- what octavo.nn has


def ours(name: str, build: Callable[[], Any], there: bool = True) -> System:
    return System(name, build, ours=True, why_not="" if there else NOT_YET)


def provides(name: str) -> bool:
    """Whether this octavo.nn has it."""
    return hasattr(octavo_nn, name)


def is_compiler() -> bool:
    return "octavo" in torch._dynamo.list_backends()


def without_compilers(sides: Sequence[System]) -> list[System]:
    """For --quick: they take a minute each."""
    slow = "not with --quick"
    return [
        replace(s, why_not=s.why_not or slow) if "compiled" in s.name and not s.ours else s for s in sides
    ]


class Workbench:
    """Builds every system when it is first asked for and keeps it; the same for its quality."""

    def __init__(self, judge: Callable[[Any, bool], Parity], needs: Sequence[str] = ()) -> None:
        self.judge, self.needs = judge, needs
        self.built: dict[str, Any] = {}
        self.parities: dict[str, Parity] = {}

    def contender(
        self, system: System, call: Callable[[Any], Callable[[int], object]], **more: Any
    ) -> Contender:
        if system.why_not:
            return Contender(system.name, ours=system.ours, why_not=system.why_not)

        def make(name: str) -> Contender:
            with quiet():
                if name not in self.built:
                    self.built[name] = system.build()
                run = call(self.built[name])
            return Contender(name, run, lambda: self.parity(system), **more)

        needs = [find(module) for module in (*self.needs, *system.needs)]
        return replace(peers.peer(system.name, make, needs=needs), ours=system.ours)

    def parity(self, system: System) -> Parity:
        if system.name not in self.parities:
            with quiet():
                self.parities[system.name] = self.judge(self.built[system.name], system.ours)
        return self.parities[system.name]


def find(module: str) -> Any:
    """None where it is not installed. Found, not imported: some are large."""
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of its parent
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Deprecated ways in are still ways in; their warnings are not this benchmark's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def cosine(got: Any, expected: Any) -> float:
    """Mean over the rows."""
    return float(torch.nn.functional.cosine_similarity(got.float(), expected.float(), dim=-1).mean())


def at_least_cosine(got: Any, expected: Any, floor: float) -> Parity:
    value = cosine(got, expected)
    return Parity(value >= floor, f"cosine {value:.4f}", {"cosine": value})


# ---- other runtimes


def ort_session(path: Path, threads: int) -> Any:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ort_runner(path: Path, threads: int) -> Callable[..., Any]:
    """Tensors in the order of the graph's inputs -> its only output."""
    session = ort_session(path, threads)
    names = [info.name for info in session.get_inputs()]

    def run(*tensors: Any) -> Any:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


def openvino_runner(model: Any, threads: int, **config: str) -> Callable[..., Any]:
    """Compiled anew for each shape of the inputs: it is faster where it knows them."""
    openvino = importlib.import_module("openvino")
    core, requests = openvino.Core(), {}
    fixed = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **config}

    def run(*tensors: Any) -> Any:
        shape = tensors[0].shape
        if shape not in requests:
            shaped = model.clone()
            shaped.reshape({i: list(tensor.shape) for i, tensor in enumerate(tensors)})
            requests[shape] = core.compile_model(shaped, "CPU", fixed).create_infer_request()
        inputs = {i: tensor.numpy() for i, tensor in enumerate(tensors)}
        return torch.from_numpy(requests[shape].infer(inputs, share_inputs=True)[0])

    return run
