"""A model and example inputs -> a functional graph, or a refusal that says why."""

from .export import Captured, capture

__all__ = ["Captured", "capture"]
