"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: the tests say what is computed, never how fast.
settings.register_profile("octavo", deadline=None)
settings.load_profile("octavo")
