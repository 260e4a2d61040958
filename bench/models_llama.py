"""A decoder of Llama's shape, 1.1 billion random weights: prefill of a prompt, greedy decoding, memory.

In the parity column: the cosine of the logits to bf16's, the size of the saved model, and the peak memory of
a process that loads it and generates, less the libraries.
"""

from __future__ import annotations

import copy
import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import octavo
from common import Case, Parity, Result
from goals import Goal
from machine import resident
from models_systems import (
    PEER_COSINE,
    System,
    Workbench,
    at_least_cosine,
    octavo_nn,
    ours,
    provides,
    without_compilers,
)

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
QUICK_SHAPE = {
    **SHAPE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
PROMPT, GENERATED = 128, 16  # tokens
QUICK_PROMPT, QUICK_GENERATED = 16, 4
MIN_COSINE = 0.99  # of octavo's, or it is refused
BF16, Q8_0 = "torch bf16", "llama.cpp Q8_0"
BYTES_PER_WEIGHT = {BF16: 2.0, Q8_0: 34 / 32}  # the others: 1


class Decoder:
    """A model of transformers'."""

    suffix = "pt"

    def __init__(self, model: Any) -> None:
        self.model = model

    def save(self, path: Path) -> None:
        torch.save(self.model, path)

    def logits(self, ids: Any) -> Any:
        return self.model(ids, use_cache=False).logits[0]

    def prefill(self, ids: Any) -> Any:
        return self.model(ids, use_cache=True, logits_to_keep=1)

    def following(self, ids: Any, cache: Any) -> Any:
        """The next token. The cache goes by its place: its name is not the same in every transformers."""
        return self.model(ids, None, None, cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    def decode(self, ids: Any, tokens: int) -> Callable[[], object]:
        """A call that generates so many tokens after the prompt, and forgets them."""
        cache = importlib.import_module("transformers").DynamicCache()
        first = self.following(ids, cache)

        def call() -> Any:
            token = first
            for _ in range(tokens):
                token = self.following(token, cache)
            cache.crop(-tokens)
            return token

        return call


class LlamaCpp:
    suffix = "gguf"

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.runner = self.load(logits_all=False)

    def load(self, logits_all: bool) -> Any:
        llama_cpp = importlib.import_module("llama_cpp")
        count = {"n_threads": self.threads, "n_threads_batch": self.threads}
        sizes = {"n_ctx": PROMPT + 2 * GENERATED, "n_batch": PROMPT}
        return llama_cpp.Llama(str(self.path), **count, **sizes, logits_all=logits_all, verbose=False)

    def save(self, path: Path) -> None:
        path.hardlink_to(self.path)

    def logits(self, ids: Any) -> Any:
        runner = self.load(logits_all=True)
        runner.eval(ids[0].tolist())
        return torch.from_numpy(runner.scores[: ids.shape[1]].copy())

    def prefill(self, ids: Any) -> None:
        self.runner.reset()
        self.runner.eval(ids[0].tolist())

    def next_token(self) -> int:
        pointer = importlib.import_module("llama_cpp").llama_get_logits(self.runner.ctx)
        logits = np.ctypeslib.as_array(pointer, (self.runner.n_vocab(),))
        return int(logits.argmax())

    def decode(self, ids: Any, tokens: int) -> Callable[[], object]:
        def call() -> None:
            self.runner.n_tokens = ids.shape[1]  # forgets what came after
            token = first
            for _ in range(tokens):
                self.runner.eval([token])
                token = self.next_token()

        self.prefill(ids)
        first = self.next_token()
        return call


def peak_memory(path: Path, prompt: int, tokens: int) -> int:
    """Bytes that loading a saved model, a prefill and a few tokens add to a process with the libraries."""
    importlib.import_module("transformers.models.llama")
    torch.set_grad_enabled(False)
    libraries = resident("VmRSS")
    if path.suffix == f".{LlamaCpp.suffix}":
        decoder: Any = LlamaCpp(path, torch.get_num_threads())
    else:
        decoder = Decoder(torch.load(path, weights_only=False))
    decoder.decode(torch.arange(prompt).unsqueeze(0), tokens)()
    return resident("VmHWM") - libraries


def make_goals(quick: bool, threads: int, folder: Path) -> list[Goal]:
    shape = QUICK_SHAPE if quick else SHAPE
    prompt, generated = (QUICK_PROMPT, QUICK_GENERATED) if quick else (PROMPT, GENERATED)
    ids = torch.randint(shape["vocab_size"], (1, prompt), generator=torch.Generator().manual_seed(1))
    model = functools.cache(lambda: random_model(shape))
    truth = functools.cache(lambda: Decoder(model()).logits(ids))

    def judge(decoder: Any, is_ours: bool) -> Parity:
        parity = at_least_cosine(decoder.logits(ids), truth(), MIN_COSINE if is_ours else PEER_COSINE)
        return parity if quick else with_memory(parity, decoder)

    def with_memory(parity: Parity, decoder: Any) -> Parity:
        path = folder / f"llama.{decoder.suffix}"
        decoder.save(path)
        try:
            command = [sys.executable, __file__, str(path), str(prompt), "4"]
            peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[-1])
            size = path.stat().st_size
        finally:
            path.unlink()
        detail = f"{parity.detail}, {size / 1e9:.2f} GB saved, {peak / 1e9:.2f} GB peak"
        return Parity(parity.ok, detail, {**parity.figures, "file_bytes": size, "peak_bytes": peak})

    sides = systems(model, threads, folder, quick)
    bench = Workbench(judge, ["transformers"])
    layers, head = linear_weights(shape)

    def prefill(decoder: Any) -> Callable[[int], object]:
        return lambda _: decoder.prefill(ids)

    def decode(decoder: Any) -> Callable[[int], object]:
        call = decoder.decode(ids, generated)
        return lambda _: call()

    def prefills() -> list[Any]:
        return [bench.contender(side, prefill) for side in sides]

    def decodes() -> list[Any]:
        return [
            bench.contender(
                side, decode, units=generated, work=(layers + head) * BYTES_PER_WEIGHT.get(side.name, 1.0)
            )
            for side in sides
        ]

    count = layers + head + shape["vocab_size"] * shape["hidden_size"]
    what = f"Llama's shape, {count / 1e6:,.1f}M weights"
    after = f"{generated} tokens after {prompt}, the time of one"
    cases = [
        Case("llama", f"prefill, {what}, {prompt} tokens", 2.0 * layers * prompt, "GOP/s", "peak", prefills),
        Case("llama", f"decode, {what}, {after}", float(layers + head), "GB/s", "read", decodes),
    ]
    return [Goal(cases[0], []), Goal(cases[1], [], tokens_per_second)]


def tokens_per_second(result: Result) -> str:
    rates = [f"{row.name} {1 / row.time.median:,.1f}" for row in result.rows if row.time is not None]
    return f"  tokens/s: {', '.join(rates)}"


def linear_weights(shape: dict[str, int]) -> tuple[int, int]:
    """How many within the layers, and in the head."""
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    kv = width // heads * shape["num_key_value_heads"]
    layer = 2 * width * width + 2 * width * kv + 3 * width * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer, width * shape["vocab_size"]


# ---- the systems


def random_model(shape: dict[str, int]) -> Any:
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def systems(model: Callable[[], Any], threads: int, folder: Path, quick: bool) -> list[System]:
    def int8(config: Any) -> Decoder:
        return Decoder(octavo.quantize_(sharing(model()), config))

    def ao(config: str) -> Decoder:
        return Decoder(torchao(sharing(model()), config))

    dynamic, weight_only = "Int8DynamicActivationInt8WeightConfig", "Int8WeightOnlyConfig"
    sides = [
        ours("octavo Int8Dynamic", lambda: int8(octavo.Int8Dynamic())),
        ours("octavo Int8WeightOnly", lambda: int8(octavo_nn.Int8WeightOnly()), provides("Int8WeightOnly")),
        System(BF16, lambda: Decoder(model())),
        System("torchao int8 dynamic, linears compiled", lambda: ao(dynamic), ["torchao"]),
        System("torchao int8 weight only, linears compiled", lambda: ao(weight_only), ["torchao"]),
        System(Q8_0, lambda: LlamaCpp(write_gguf(model(), folder), threads), ["llama_cpp", "gguf"]),
    ]
    return without_compilers(sides) if quick else sides


def sharing(model: Any) -> Any:
    """A model of its own modules on the same tensors: conversion replaces them, and nobody copies 2 GB."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def torchao(model: Any, config: str) -> Any:
    """Layer by layer: the whole model, with its growing cache, takes many minutes to compile."""
    quantization = importlib.import_module("torchao.quantization")
    quantization.quantize_(model, getattr(quantization, config)())
    torch._dynamo.config.recompile_limit = 64  # one function, many shapes of weights
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.__dict__.pop("extra_repr", None)  # torchao's own, which torch.save cannot write
            module.compile(dynamic=True)
    return model


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    stem = name.removesuffix(".weight")
    if stem in GGUF_OUTER:
        return f"{GGUF_OUTER[stem]}.weight"
    layer, inner = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[inner]}.weight"


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of q and k in llama.cpp's order: it rotates neighbours, transformers rotates halves."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(model: Any, folder: Path) -> Path:
    gguf = importlib.import_module("gguf")
    path, config = folder / "llama_q8_0.gguf", model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    kind = gguf.GGMLQuantizationType.Q8_0
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        array, new = tensor.float().numpy(), gguf_name(name)
        if array.ndim == 1:
            writer.add_tensor(new, array)
            continue
        role = new.split(".")[-2]
        array = interleaved(array, heads[role]) if role in heads else array
        writer.add_tensor(new, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    print(peak_memory(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
