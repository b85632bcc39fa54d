"""Settings of all tests: one thread, the hypothesis profiles, a seed for each run, and an empty
cache."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, core, settings
from sparsify.codegen.background import emitted

torch.set_num_threads(1)
emitted.PAYS_AFTER = math.inf
os.environ["SPARSIFY_CACHE_DIR"] = tempfile.mkdtemp(prefix="sparsify-tests-")
"""Nothing is compiled beside tests but by those that ask for it, nor taken from earlier runs."""

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile(
    "ci", deadline=None, max_examples=30, print_blob=True, suppress_health_check=_SLOW
)
# For a night: pytest tests/test_laws.py --hypothesis-profile=deep
settings.register_profile("deep", parent=settings.get_profile("ci"), max_examples=2000)
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute, and guards one thing alone, runs with the deep profile."""
    if settings.default is not settings.get_profile("deep"):
        skip = pytest.mark.skip(reason="make test-deep")
        for item in items:
            if item.get_closest_marker("deep"):
                item.add_marker(skip)


# -- the seed: each run draws other examples, and says how to draw them again --------------------


def pytest_configure(config: pytest.Config) -> None:
    """``--hypothesis-seed``, else ``HYPOTHESIS_SEED``, else a new one. Workers of xdist, and tests
    that run in a process of their own, inherit it."""
    given = config.getoption("--hypothesis-seed") or os.environ.get("HYPOTHESIS_SEED")
    core.global_force_seed = int(given or int.from_bytes(os.urandom(4), "big"))
    os.environ["HYPOTHESIS_SEED"] = str(core.global_force_seed)


def pytest_report_header() -> str:
    return f"random examples: --hypothesis-seed={core.global_force_seed}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Also of quiet runs, which have no header."""
    terminalreporter.write_line(pytest_report_header())
