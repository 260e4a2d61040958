"""What all tests share."""

from __future__ import annotations

import os
import warnings
from collections import Counter

from hypothesis import HealthCheck, settings

# No deadline and no health check that looks at the clock: the tests say what is computed, never how fast.
# Cases are the same on every run; those of `make test-deep` are ten times as many, and new ones.
CLOCK = [HealthCheck.too_slow, HealthCheck.data_too_large]
common = settings(deadline=None, database=None, suppress_health_check=CLOCK)
settings.register_profile("gate", common, derandomize=True, max_examples=100)
settings.register_profile("deep", common, max_examples=1000, print_blob=True)
settings.load_profile("deep" if os.environ.get("OCTAVO_TEST_DEEP") == "1" else "gate")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before an OpenMP runtime is loaded: workers share the cores, and threads that wait leave them to others.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

with warnings.catch_warnings():
    # Where the native module is missing its tests fail one by one (strategies.isas), not all of them here.
    warnings.simplefilter("ignore", RuntimeWarning)
    import octavo  # noqa: F401


def pytest_collection_modifyitems(items):
    """What takes longest begins first: at the end of a run no worker waits for another."""
    items.sort(key=lambda item: "test_torch_versions" not in item.nodeid)


def pytest_terminal_summary(terminalreporter):
    """What the tests of the zoo have recorded, on every worker: how many models do what."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    counts = Counter(
        value
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "zoo"
    )
    if counts:
        terminalreporter.section("zoo")
        for value, count in sorted(counts.items()):
            terminalreporter.line(f"{count:4} {value}")
