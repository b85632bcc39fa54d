"""Generators and restorers: right, and packed where nothing stands in the way."""

from __future__ import annotations

import pytest

from tests.agreement import assert_right
from tests.gans import GANS, gan

# Least share of the multiply-accumulates in packed nodes. What is left out falls back somewhere.
PACKED = {
    **dict.fromkeys(("spade, batch norm", "spade, instance norm", "pix2pix", "cyclegan"), 0.99),
    **dict.fromkeys(("adain", "wavelets", "real-esrgan"), 0.99),
    "nafnet": 0.95,
}


@pytest.mark.parametrize("name", GANS)
def test_update_is_right_and_packed(name: str) -> None:
    report = assert_right(gan(name, batch=2))
    assert report.share("packed") >= PACKED.get(name, 0.0)
