"""What holds for every model of the zoo."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import octavo
from fusing import count_graph_calls

from .entry import Entry

Call = dict[str, Any]
# Rounding moves a row of 32 random numbers by some 0.7 %, twice in a product. So the measure is what a model
# makes of noise: int8 may be thrice as far off as the float model is where the result of every layer gets 1 %
# of it. (Measured: at most 2.1 times, mostly once; a layer that computes something else is 100 % off.)
NOISE = 0.01
LEAST = 0.02  # where noise does not come through
# Another order of float operations moves an activation to the next step here and there.
BOUND = 0.1
SPECIAL = [92, 93, 94, 95]  # tokens that stand for images, in models that take some


def forward(model: nn.Module, call: Call) -> list[Tensor]:
    """Every tensor of the result, what the model is for (logits, the last hidden state) first."""
    with torch.no_grad():
        result = model(**copy.deepcopy(call))
    first = [getattr(result, name, None) for name in ("logits", "last_hidden_state")]
    return [each for each in [*first, *pytree.tree_leaves(_plain(result))] if isinstance(each, Tensor)]


def _plain(result: Any) -> Any:
    return dict(result) if hasattr(result, "to_tuple") else result


def error(found: Tensor, wanted: Tensor, *, chooses: bool = False) -> float:
    """|found - wanted| / |wanted|, of all rows; or that of the median row, where choices may differ."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.isfinite().equal(wanted.isfinite())
    f, w = (torch.where(each.isfinite(), each, 0).double() for each in (found, wanted))
    rows = (f - w, w)
    if chooses:
        differences, sizes = (each.reshape(-1, each.shape[-1]).norm(dim=-1) for each in rows)
        return float((differences / sizes.clamp(min=1e-30)).median())
    difference, size = (each.norm() for each in rows)
    return float(difference / size.clamp(min=1e-30))


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(f.nan_to_num(7.0), w.nan_to_num(7.0)) for f, w in zip(found, wanted, strict=True)
    )


def check_near(entry: Entry, model: nn.Module, call: Call) -> None:
    wanted = forward(entry.make(), call)[0]
    off = error(forward(model, call)[0], wanted, chooses=entry.chooses)
    bound = bound_of(entry, call, wanted)
    assert off < bound, f"int8 is {off:.3f} off, with noise float is {bound:.3f} off"


def bound_of(entry: Entry, call: Call, wanted: Tensor) -> float:
    model, generator = entry.make(), torch.Generator().manual_seed(5)

    def disturb(layer: nn.Module, args: Any, result: Any) -> Any:
        if not isinstance(result, Tensor):  # of a subclass
            return result
        noise = torch.randn(result.shape, generator=generator)
        return result + noise * NOISE * result.square().mean(-1, keepdim=True).sqrt()

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.register_forward_hook(disturb)
    return max(LEAST, 3 * error(forward(model, call)[0], wanted, chooses=entry.chooses))


def check_copies(entry: Entry, model: nn.Module, call: Call, folder: Path) -> None:
    wanted = forward(model, call)
    assert same(forward(model, call), wanted), "two calls"
    assert same(forward(copy.deepcopy(model), call), wanted), "copy.deepcopy"
    octavo.save(model, folder / "octavo")
    assert same(forward(octavo.load(entry.build, folder / "octavo").eval(), call), wanted), "octavo.load"
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = octavo.quantize_(_of_other_values(entry.make()))
    other.load_state_dict(torch.load(file))
    assert same(forward(other, call), wanted), "load_state_dict"
    reference = entry.make()
    forward(reference, call)  # which installs hooks in some
    try:
        pickle.dumps(reference)
    except (AttributeError, RuntimeError, TypeError, pickle.PicklingError):
        return
    assert same(forward(pickle.loads(pickle.dumps(model)), call), wanted), "pickle"


def _of_other_values(model: nn.Module) -> nn.Module:
    for value in model.parameters():
        value.data.mul_(0.5)
    return model


def check_generate(entry: Entry, model: nn.Module, call: Call) -> None:
    """Greedy, with the cache; and against one forward without it over what came out, where that is the same
    of the float model."""
    off = _cached_off(model, call, entry.chooses)
    if _cached_off(entry.make(), call, entry.chooses) < 1e-3:
        assert off < BOUND, f"generate is {off:.3f} off a forward without cache"


def _cached_off(model: nn.Module, call: Call, chooses: bool) -> float:
    given = {name: value for name, value in call.items() if not name.startswith("decoder_")}
    with torch.no_grad():
        found = model.generate(
            **copy.deepcopy(given), max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=1,
            suppress_tokens=SPECIAL, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        ids = found.sequences[:, :-1]
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = ids
        else:
            more = ids.shape[1] - given["input_ids"].shape[1]
            for name, value in given.items():
                if value.shape == given["input_ids"].shape and name != "input_ids":  # masks, types
                    given[name] = nn.functional.pad(value, (0, more), value=int(name == "attention_mask"))
            given["input_ids"] = ids
        wanted = model(**given, use_cache=False).logits
    logits = torch.stack(found.logits, dim=1)
    return error(logits, wanted[:, -logits.shape[1] :], chooses=chooses)


def check_fused(entry: Entry, model: nn.Module, call: Call) -> None:
    wanted = forward(model, call)
    fused = octavo.fuse_(model, copy.deepcopy(call))
    calls = count_graph_calls(fused)
    found = forward(fused, call)
    assert calls == [1], "the graph did not run"
    assert len(found) == len(wanted)
    off = error(found[0], wanted[0], chooses=entry.chooses)
    assert off < BOUND, f"fused is {off:.3f} off"


# ---- a test of each ----


def check_int8(entry: Entry, folder: Path, record: Callable[[str, str], None]) -> None:
    """record: pytest's record_property; conftest.py counts."""
    record("zoo", "models tried")
    call = entry.call()
    model = octavo.quantize_(entry.make())
    check_near(entry, model, call)
    check_copies(entry, model, call, folder)
    if entry.generates and hasattr(model, "can_generate") and model.can_generate():
        check_generate(entry, model, call)
    record("zoo", "models int8")


def check_fuse(entry: Entry, record: Callable[[str, str], None]) -> None:
    """It holds, or says why not."""
    model = octavo.quantize_(entry.make())
    record("zoo", "fuse_ tried")
    try:
        check_fused(entry, model, entry.call())
    except ValueError as refusal:
        if not str(refusal).startswith("model: expected"):
            raise
        # of all refusals of a kind the same
        reason = re.sub(r"for \w+ it says: |\(.*|\b[us]?\d+\b|[A-Za-z]*'\w[\w.]*'", "", str(refusal)).strip()
        record("zoo", f"fuse_ refused: {reason[:120]}")
    else:
        record("zoo", "fuse_ held")
