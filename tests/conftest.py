"""What all tests share."""

from __future__ import annotations

import os
import warnings

from hypothesis import HealthCheck, settings

# No deadline and no health check that looks at the clock: the tests say what is computed, never how fast.
# Cases are the same on every run; those of `make test-deep` are ten times as many, and new ones.
CLOCK = [HealthCheck.too_slow, HealthCheck.data_too_large]
common = settings(deadline=None, database=None, suppress_health_check=CLOCK)
settings.register_profile("gate", common, derandomize=True, max_examples=100)
settings.register_profile("deep", common, max_examples=1000, print_blob=True)
settings.load_profile("deep" if os.environ.get("OCTAVO_TEST_DEEP") == "1" else "gate")

with warnings.catch_warnings():
    # Where the native module is missing its tests fail one by one (strategies.isas), not all of them here.
    warnings.simplefilter("ignore", RuntimeWarning)
    import octavo  # noqa: F401
