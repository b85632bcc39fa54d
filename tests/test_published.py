"""Schedules of published methods have the key steps and the weights of their code.

What it computes was copied here: cache-dit 1.5.3 (``steps_mask``), DeepCache 0.1.1
(``sample_from_quad_center``), and the lists of Faster Diffusion's utils_sd.py and utils_if.py.
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify import ConfigError, Schedule

EPSILON = sys.float_info.epsilon
MASKS = {
    "slow": (
        "1101",
        "111001",
        "11111011",
        "111110111",
        "111101101111",
        "1111111101110011",
        "11111111011100111001",
        "1111111101110011100110010001",
        "111111111111011100111001100101",
        "11111111111111111111110011111000111110001110001101",
    ),
    "medium": (
        "1101",
        "111001",
        "11110101",
        "111110101",
        "111101101001",
        "1111110110001001",
        "11111101100011000101",
        "1111110110001100011000110001",
        "111111111011000110001100011001",
        "11111111111111110011100000111000001110000011100001",
    ),
    "fast": (
        "1101",
        "111001",
        "11101001",
        "111101001",
        "111010010011",
        "1111100000000001",
        "11111101000000000001",
        "1111110100010000100000100001",
        "111111111010001000010000010001",
        "11111111111001100000110000000110000000001100000001",
    ),
    "ultra": (
        "1101",
        "111001",
        "11001001",
        "111001001",
        "110100100011",
        "1100000000000001",
        "11110000000000000001",
        "1111001000001000000100000001",
        "111111001000001000000100000001",
        "11111110001100000000011000000000001100000000000001",
    ),
}


def mask(schedule: Schedule) -> str:
    return "".join("01"[step in schedule.keys] for step in range(schedule.steps))


@pytest.mark.parametrize("policy", MASKS)
def test_cache_dit_computes_where_its_masks_say(policy: str) -> None:
    for expected in MASKS[policy]:
        schedule = Schedule.published("cache-dit", len(expected), policy=policy)
        assert mask(schedule) == expected and schedule.reuse == "blocks"
        assert schedule == Schedule.at(schedule.keys, schedule.steps, reuse="blocks")


def test_cache_dit_has_masks_from_8_steps_on() -> None:
    masks = [
        mask(Schedule.published("cache-dit", steps, policy=policy))
        for policy in MASKS
        for steps in range(8, 101)
    ]
    digest = "1f1846f72374fbf971a371780276044a68540e51da046c4cc2668da84787f24c"
    assert sha256("\n".join(masks).encode()).hexdigest() == digest


def test_cache_dit_forecasts_along_a_line_from_the_fourth_step_on() -> None:
    schedule = Schedule.published("cache-dit", 28, policy="ultra", order=1)
    assert schedule == Schedule.at(schedule.keys, 28, 1, "blocks")
    early = Schedule.published("cache-dit", 8, policy="ultra", order=1)
    assert early.keys == (0, 1, 4, 7)
    assert early.rows[2] == early.rows[3] == ((1, 1.0),)
    assert early.rows[5] == ((1, -1 / 3), (4, 4 / 3))


@pytest.mark.parametrize(
    ("steps", "options", "keys"),
    [
        (50, {}, (0, 1, 2, 3, 5, 10, 15, 25, 35)),
        (20, {}, (0, 1, 2, 3, 5, 10, 15)),
        (50, {"variant": "50ls2"}, (0, 10, 11, 12, 15, 20, 25, 30, 35, 45)),
        (50, {"variant": "50ls3"}, (0, 20, 25, 30, 35, 45, 46, 47, 48, 49)),
        (50, {"variant": "50ls4"}, (0, 9, 13, 14, 15, 28, 29, 32, 36, 45)),
        (75, {"variant": "75ls2"}, (0, 1, 2, 3, 5, 10, 15, 25, 35, 45, 55, 65)),
        (91, {"variant": "pro"}, (0, 2, 5, 9, 14, 20, 27, 35, 44, 54, 65, 77, 90)),
        (10, {"interval": 4}, (0, 4, 8)),
    ],
)
def test_faster_diffusion_has_the_listed_keys(
    steps: int, options: dict[str, object], keys: tuple[int, ...]
) -> None:
    schedule = Schedule.published("faster-diffusion", steps, **options)
    assert schedule == Schedule.at(keys, steps, reuse="encoder")


def test_faster_diffusion_has_the_keys_of_pixel_models() -> None:
    def keys(steps: int, variant: str) -> tuple[int, ...]:
        return Schedule.published("faster-diffusion", steps, variant=variant).keys

    assert keys(100, "100ls") == tuple(s for s in range(100) if s > 85 or s < 10 or s % 5 == 0)
    assert keys(75, "75ls") == tuple(s for s in range(75) if s > 65 or s < 10 or s % 5 == 0)
    assert keys(50, "s2") == tuple(s for s in range(50) if s < 20 or s > 40 or s % 2 == 0)


def test_deepcache_computes_deep_features_at_every_so_many_steps() -> None:
    assert Schedule.published("deepcache", 10) == Schedule.every(3, 10, reuse="deep.0")
    schedule = Schedule.published("deepcache", 50, branch=2, interval=5)
    assert schedule == Schedule.every(5, 50, reuse="deep.2")


@pytest.mark.parametrize(
    ("steps", "options", "keys"),
    [
        (50, {}, (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)),
        (50, {"center": 10, "power": 1.2}, (0, 5, 9, 12, 16, 21, 26, 32, 38, 43)),
        (50, {"interval": 7, "power": 1.9}, (0, 5, 10, 15, 20, 26, 33, 41)),
        (30, {"interval": 4, "center": 0}, (0, 1, 4, 7, 11, 15, 20, 24)),
        (30, {"center": 0, "interval": 3, "power": 1.8}, (0, 1, 2, 5, 7, 10, 14, 17, 21, 25)),
        (25, {}, (0, 6, 12, 15, 20)),
        (6, {"interval": 1}, (0, 1, 2, 3, 4, 5)),
        (6, {"interval": 6}, (0,)),
    ],
)
def test_deepcache_has_keys_closer_together_around_a_step(
    steps: int, options: dict[str, object], keys: tuple[int, ...]
) -> None:
    schedule = Schedule.published("deepcache-nonuniform", steps, branch=1, **options)
    assert schedule == Schedule.at(keys, steps, reuse="deep.1")


def test_fora_computes_blocks_at_every_so_many_steps() -> None:
    assert Schedule.published("fora", 20) == Schedule.every(3, 20, reuse="blocks")
    assert Schedule.published("fora", 20, interval=5).keys == (0, 5, 10, 15)


def test_taylorseer_goes_on_along_a_line_after_three_steps() -> None:
    schedule = Schedule.published("taylorseer", 50)
    assert schedule.keys == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)
    assert schedule == Schedule.at(schedule.keys, 50, 1, "blocks")


@pytest.mark.parametrize("order", [0, 1, 2])
@given(st.lists(st.integers(-99, 99), min_size=20), st.integers(1, 7), st.integers(1, 5))
def test_taylorseer_forecasts_as_its_code_does(
    order: int, values: list[int], interval: int, warm_up: int
) -> None:
    """The features are numbers. Its code counts the steps since the last one that computed."""
    options = {"interval": interval, "warm_up": warm_up, "order": order}
    schedule = Schedule.published("taylorseer", len(values), **options)
    factors, last, since = list[Fraction](), 0, 0
    for step, value in enumerate(values):
        computes = step < warm_up or since == interval - 1
        since = 0 if computes else since + 1
        if computes:
            before, factors = factors, [Fraction(value)]
            for factor in before[:order] if step > warm_up - 2 else []:
                factors.append((factors[-1] - factor) / (step - last))
            last = step
        expected = sum(f * (step - last) ** i / math.factorial(i) for i, f in enumerate(factors))
        assert (step in schedule.keys) == computes
        terms = [weight * values[key] for key, weight in schedule.rows[step]]
        # Weights, products and two sums are rounded: four times half an epsilon.
        assert abs(Fraction(sum(terms)) - expected) <= 2.1 * EPSILON * sum(map(abs, terms))


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("teacache", 50, {}, "one of faster-diffusion, deepcache, "),
        ("fora", 50, {"order": 1}, "fora has no option 'order': one of interval"),
        ("faster-diffusion", 50, {"steps_": 1}, "one of variant, interval"),
        ("faster-diffusion", 30, {}, "no list for steps=30.*20: 20ls; 50: 50ls, .*; 100: 100ls"),
        ("faster-diffusion", 20, {"variant": "50ls2"}, "no list for steps=20, variant='50ls2'"),
        ("faster-diffusion", 50, {"variant": "60ls"}, "no list for steps=50, variant='60ls'"),
        ("faster-diffusion", 50, {"variant": "pro", "interval": 2}, "interval and no variant"),
        ("deepcache", 50, {"interval": 0}, "at least 1"),
        ("deepcache", 50, {"branch": -1}, "deep.-1"),
        ("deepcache-nonuniform", 30, {"interval": 2}, "15 keys do not fit around step 15 of 30"),
        ("cache-dit", 50, {"policy": "turbo"}, "policies are slow, medium, fast, ultra"),
        ("cache-dit", 50, {"order": 2}, "orders 0 and 1"),
        ("cache-dit", 7, {}, "for 7 steps"),
        ("taylorseer", 50, {"order": 3}, "order=3"),
        ("taylorseer", 50, {"warm_up": 0}, "first step"),
        ("taylorseer", 0, {}, "first step"),
    ],
)
def test_what_was_not_published_is_refused(
    name: str, steps: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.published(name, steps, **options)
