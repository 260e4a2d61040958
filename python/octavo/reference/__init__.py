"""What every operation computes: numpy.py is the definition, torch.py the same for tensors."""

from __future__ import annotations

from .numpy import *  # noqa: F403
