"""Edits of what diffusers pipelines make."""

from .editor import Editor
from .parts import Parts, enable
from .result import Result

__all__ = ["Editor", "Parts", "Result", "enable"]
