"""Files of octavo.save: what is refused, how they are written, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import octavo
from checkpoints import MANIFEST, TENSORS, Model, quantized, refused, same_state, stored
from strategies import succeed

torch = pytest.importorskip("torch")
safe = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

from octavo.storage import files  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- what is refused ----


@pytest.fixture
def small(tmp_path):
    layer = nn.Linear(16, 4)
    octavo.prune_(layer.weight, sparsity=0.9)
    model = octavo.quantize_(nn.Sequential(layer, nn.LayerNorm(4)))
    octavo.save(model, tmp_path / "small")
    return tmp_path / "small"


def plain():
    return nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(4))


def test_any_other_byte_is_refused(small):
    for name in (TENSORS, MANIFEST):
        path = small / name
        good = path.read_bytes()
        for i in range(0, len(good), 1 if name == MANIFEST else 5):
            changed = good[i] ^ (1 << i % 8)
            path.write_bytes(good[:i] + bytes([changed]) + good[i + 1 :])
            with pytest.raises(ValueError, match="expected"):
                octavo.load(plain, small)
            if good[i : i + 1].isspace():  # JSON that means the same
                path.write_bytes(good[:i] + b"\t" + good[i + 1 :])
                with pytest.raises(ValueError, match="expected"):
                    octavo.load(plain, small)
        path.write_bytes(good)
    octavo.load(plain, small)


@pytest.mark.parametrize("verify", [True, False])
def test_any_other_length_is_refused(small, verify):
    for name in (TENSORS, MANIFEST):
        path = small / name
        good = path.read_bytes()
        for length in (*range(0, len(good), 7), len(good) - 1):
            path.write_bytes(good[:length])
            with pytest.raises(ValueError, match=f"{name}: expected"):
                octavo.load(plain, small, verify=verify)
        path.write_bytes(good + b"\n")
        with pytest.raises(ValueError, match=f"{name}: expected"):
            octavo.load(plain, small, verify=verify)
        path.write_bytes(good)
    octavo.load(plain, small, verify=verify)


def test_files_of_two_checkpoints_do_not_mix(small, tmp_path):
    other = octavo.load(plain, small)
    with torch.no_grad():
        other[1].weight.add_(1)
    octavo.save(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, small)
    refused(f"{TENSORS}: expected sha256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}", plain(), small)


def rewrite(directory, change):
    """Changes a manifest and gives it the checksum that belongs to it, as another writer would."""
    from octavo.storage.checkpoint import _render

    manifest = json.loads((directory / MANIFEST).read_text())
    change(manifest)
    (directory / MANIFEST).write_text(_render(manifest))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m.update(format_version=3, octavo="9.0"),
            "format_version 1 or 2.*got 3, written by octavo '9.0'",
        ),
        (lambda m: m.update(format_version=0), "expected format_version 1.*got 0"),
        (lambda m: m.update(format="pt"), "expected format 'octavo', got 'pt'"),
        (lambda m: m["modules"]["0"].update(kind="Linear"), "kind: expected one of .*got 'Linear'"),
        (lambda m: m["modules"]["0"]["settings"].update(x=1), "settings: expected those of Int8Linear"),
        (lambda m: m["tensors"].pop("1.bias"), r"has \['1.bias'\] besides"),
        (lambda m: m["tensors"].update(x={"storage": "dense"}), r"lacks \['x'\]"),
        (
            lambda m: m["tensors"]["0.weight_int8"].update(shape=[4, 15]),
            "0.weight_int8.values: expected|size mismatch|got",
        ),
        (lambda m: m["modules"].update({"7": m["modules"].pop("0")}), "lacks .*0.weight_scale"),
    ],
)
def test_manifests_of_others_are_refused(small, change, match):
    rewrite(small, change)
    refused(match, plain(), small)


def test_directories_of_others_are_refused(small, tmp_path):
    (small / TENSORS).unlink()
    refused(f"{TENSORS}: expected a file of [0-9]+ bytes, got none", plain(), small)
    (small / MANIFEST).unlink()
    refused(rf"{MANIFEST}: expected this file.*got \[\]", plain(), small)
    for text in ("[1]", "3", '{"format": null}', "{", "[" * 100_000, '"\udcff"'):
        (small / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(f"{MANIFEST}: expected", plain(), small)
    with pytest.raises(FileNotFoundError, match=r"directory: expected a directory, got .*nowhere"):
        octavo.load(plain, tmp_path / "nowhere")
    octavo.save(plain(), tmp_path / "x")
    for model in (3, lambda: 3):
        with pytest.raises(TypeError, match=r"model_or_factory: expected a .*got (an? )?int"):
            octavo.load(model, tmp_path / "x")


def test_values_that_do_not_fit_their_mask_are_refused(small):
    good = stored(small)
    for name, value in (
        ("0.weight_int8.values", good["0.weight_int8.values"][:-1].clone()),
        ("0.weight_int8.values", torch.zeros_like(good["0.weight_int8.values"])),
        ("0.weight_int8.values", good["0.weight_int8.values"].to(torch.uint8)),
        ("0.weight_int8.mask_bits", torch.zeros_like(good["0.weight_int8.mask_bits"])),
        ("0.weight_int8.mask_bits", good["0.weight_int8.mask_bits"][:-1].clone()),
        ("0.weight_scale", torch.ones(5, 1)),
    ):
        path = small / TENSORS
        safe.save_file(good | {name: value}, path)
        sizes = {"nbytes": path.stat().st_size, "sha256": files.sha256(path)}
        rewrite(small, lambda m, sizes=sizes: m.update(file=sizes))
        refused("expected|size mismatch", plain(), small)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(16, 4)), "lacks .*1.bias"),
        (lambda: nn.Sequential(*plain(), nn.Linear(4, 4)), r"has \['2.bias', '2.weight'\] besides"),
        (lambda: nn.Sequential(nn.Linear(15, 4), nn.LayerNorm(4)), r"layer '0'.*\(4, 16\).*got \(4, 15\)"),
        (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), r"layer '0'.*\(4, 16\).*got \(\)"),
        (lambda: nn.Sequential(nn.Linear(16, 4), nn.LayerNorm(5)), r"1.bias.*\(4,\) .*got \(5,\)|1.weight"),
        (lambda: nn.ModuleDict({"1": nn.LayerNorm(4)}), "expected a module '0'"),
    ],
)
def test_other_architectures_are_refused(small, model, match):
    refused(match, model(), small)


def test_other_dtypes_are_refused(small):
    for layer, dtype in ((0, "float64"), (1, "float16")):
        model = plain()
        model[layer].to(getattr(torch, dtype))
        refused(rf"{layer}\..*: expected torch.float32 as in the file, got torch.{dtype}", model, small)


def test_a_module_that_fails_to_load_leaves_the_model_unchanged(small):
    class Fails(nn.LayerNorm):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            raise ValueError("of its own")

    refused("of its own", nn.Sequential(nn.Linear(16, 4), Fails(4)), small)


# ---- how it is written ----


def broken_write(tensors, path, metadata):
    Path(path).write_bytes(b"\0" * 100)
    raise OSError(28, "No space left on device")


def test_a_failed_save_leaves_what_was_there(small, tmp_path, monkeypatch):
    good = {name: (small / name).read_bytes() for name in (TENSORS, MANIFEST)}

    def fail(*_):
        raise OSError(28, "No space left on device")

    for owner, name, failure in (
        (safe, "save_file", broken_write),
        (os, "fsync", fail),
        (os, "rename", fail),
    ):
        for target in (small, tmp_path / "new"):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, failure)
                with pytest.raises(OSError, match="No space left"):
                    octavo.save(quantized(), target)
            assert [each.name for each in tmp_path.iterdir()] == ["small"]
            assert {each.name: each.read_bytes() for each in small.iterdir()} == good


def test_everything_is_flushed_before_it_is_seen(tmp_path, monkeypatch):
    events = []
    rename, fsync = os.rename, os.fsync

    def flushed(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(a, b):
        events.append("rename")
        rename(a, b)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    octavo.save(quantized(), tmp_path / "target")
    *files_, draft, renames, parent = events
    assert sorted(files_) == [TENSORS, MANIFEST]
    assert draft.startswith(".target.")
    assert (renames, parent) == ("rename", tmp_path.name)


@pytest.mark.parametrize("exchange", [True, False])
def test_an_earlier_checkpoint_is_replaced(small, tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    model = quantized()
    octavo.save(model, small)
    same_state(model, octavo.load(Model, small))
    assert [each.name for each in tmp_path.iterdir()] == ["small"]
    mode = small.stat().st_mode & 0o666
    assert {each.stat().st_mode & 0o777 for each in small.iterdir()} == {mode}


def test_without_exchange_a_failed_rename_brings_the_old_one_back(small, tmp_path, monkeypatch):
    good = (small / TENSORS).read_bytes()
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    rename, calls = os.rename, []

    def third_fails(a, b):
        calls.append(a)
        if len(calls) == 3:  # the first finds the target occupied, the second moves it away
            raise OSError(5, "Input/output error")
        rename(a, b)

    monkeypatch.setattr(os, "rename", third_fails)
    with pytest.raises(OSError, match="Input/output"):
        octavo.save(quantized(), small)
    assert len(calls) == 4
    assert (small / TENSORS).read_bytes() == good
    assert [each.name for each in tmp_path.iterdir()] == ["small"]


def test_what_is_not_octavos_is_never_replaced(small, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / MANIFEST).write_text('{"format": "other"}')
    (small / "notes.txt").write_text("mine")
    for name, match in (
        ("file", "expected nothing, an empty directory or an octavo checkpoint.*'file'"),
        ("full", "expected format 'octavo', got 'other'"),
        ("small", r"got .*small' with \['notes.txt'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            octavo.save(quantized(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"
    assert (small / "notes.txt").read_text() == "mine"


def test_what_came_into_a_checkpoint_meanwhile_is_not_lost(small, monkeypatch):
    write = safe.save_file

    def slowly(*args, **options):
        write(*args, **options)
        (small / "notes.txt").write_text("mine")

    monkeypatch.setattr(safe, "save_file", slowly)
    with pytest.raises(ValueError, match=r"small' with \['notes.txt'\]"):
        octavo.save(quantized(), small)
    assert (small / "notes.txt").read_text() == "mine"


def test_a_link_to_a_checkpoint_stays_a_link(small, tmp_path):
    (tmp_path / "link").symlink_to(small)
    model = quantized()
    octavo.save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    same_state(model, octavo.load(Model, small))
    (tmp_path / "empty").mkdir()
    octavo.save(model, tmp_path / "deep" / "er")
    octavo.save(model, tmp_path / "empty")
    same_state(model, octavo.load(Model, tmp_path / "empty"))


# Child processes save and die at every step, and save over each other: the directory holds one of the two
# models, whole, at any time.
CRASHES = """
import os, sys, tempfile, warnings
warnings.simplefilter("ignore")  # Python warns of fork beside threads; the children run no kernels
import torch
import octavo
from octavo.storage import files

def make(value):
    model = octavo.quantize_(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16)))
    torch.nn.init.constant_(model[1].weight, value)
    return model

def held(target):
    model = octavo.load(lambda: torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16)), target)
    (value,) = set(model[1].weight.tolist())
    return value

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid

one, two = make(1.0), make(2.0)
parent = tempfile.mkdtemp()
target = os.path.join(parent, "target")
octavo.save(one, target)

def die_at(step):
    left = [step]
    def counted(function):
        def run(*args, **kwargs):
            if not left[0]:
                os._exit(1)
            left[0] -= 1
            return function(*args, **kwargs)
        return run
    import safetensors.torch as safe
    for owner, name in ((safe, "save_file"), (os, "fsync"), (os, "rename"), (files, "_exchange"),
                        (os, "rmdir"), (os, "unlink"), (files, "sha256")):
        setattr(owner, name, counted(getattr(owner, name)))
    octavo.save(two, target)

seen, step, status = [], 0, 1
while status:
    status = os.waitpid(child(lambda: die_at(step)), 0)[1]
    seen.append(held(target))
    step += 1
assert seen == sorted(seen) and set(seen) == {1.0, 2.0} and step > 8, seen

savers = [child(lambda model=model: [octavo.save(model, target) for _ in range(20)]) for model in (one, two)]
statuses = [os.waitpid(pid, 0)[1] for pid in savers]
assert statuses == [0, 0] and held(target) in (1.0, 2.0)
print("whole", step)
"""


def test_a_crash_or_a_race_leaves_a_whole_checkpoint():
    assert succeed(CRASHES).stdout.startswith("whole")
