"""Generators and restorers: right, and packed where nothing stands in the way."""

from __future__ import annotations

import pytest

from tests.agreement import assert_right
from tests.nets.gans import GANS, gan

# LaMa convolves frequencies, and each of them sees every edit.
LESS = {"lama": 0.79}


@pytest.mark.parametrize("name", GANS)
def test_update_is_right_and_packed(name: str) -> None:
    report = assert_right(gan(name, batch=2))
    assert report.share("packed") + report.share("static") >= LESS.get(name, 0.95)
