"""Entries for models of transformers, from their classes and the values of their configs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import transformers
from torch import nn

from .entry import Entry, Inputs


def entries(
    classes: str | Mapping[str, Mapping[str, Any]], common: Mapping[str, Any], inputs: Inputs, **more: Any
) -> dict[str, Entry]:
    """By the name of the class; `...` leaves one of `common` out. Without those that this version lacks."""
    own = {name: {} for name in classes.split()} if isinstance(classes, str) else classes
    found = {}
    for name, config in own.items():
        if hasattr(transformers, name):
            values = {key: value for key, value in {**common, **config}.items() if value is not ...}
            found[name] = Entry(partial(_build, name, values), inputs, **more)
    return found


def _build(name: str, config: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, name)
    return kind(kind.config_class(**copy.deepcopy(config)))  # it changes what it is given
