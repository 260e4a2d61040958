"""What all tests share."""

from __future__ import annotations

import os
import warnings

from hypothesis import HealthCheck, settings

# No deadline and no health check that looks at the clock: the tests say what is computed, never how fast.
CLOCK = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("octavo", deadline=None, database=None, suppress_health_check=CLOCK)
settings.register_profile("ci", settings.get_profile("octavo"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "octavo")

with warnings.catch_warnings():
    # Where the native module is missing its tests fail one by one (strategies.isas), not all of them here.
    warnings.simplefilter("ignore", RuntimeWarning)
    import octavo  # noqa: F401
