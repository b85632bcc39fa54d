"""Packing rules, one family of operators a file; importing them fills the registry."""

from . import attention, conv, linear, lookup, norm, pointwise, resample, sample, series, shape
from .base import Rule, find_rule, register

__all__ = [
    "Rule",
    "attention",
    "conv",
    "find_rule",
    "linear",
    "lookup",
    "norm",
    "pointwise",
    "register",
    "resample",
    "sample",
    "series",
    "shape",
]
