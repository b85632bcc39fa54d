"""The words that another prompt changes, by the tokens of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from ..changed_words import Words


def changed_words(
    pipe: Any, old: Mapping[str, Any], new: Mapping[str, Any], pictures: int
) -> tuple[Words, ...]:
    """Of each picture, from the arguments of two calls. None where more than ``prompt`` tells what
    words there are, where it is no text, and where the pipeline has no tokenizer, or has several
    that split it differently."""
    names = {
        name for name in (*old, *new) if "prompt" in name and old.get(name) is not new.get(name)
    }
    pairs = list(zip(_texts(old), _texts(new), strict=False))
    if names != {"prompt"} or not pairs or len(pairs) != len(_texts(new)):
        return ()
    parts = pipe.components.items()
    tokenizers = [part for name, part in parts if name.startswith("tokenizer") and callable(part)]
    found = {tuple(_between(own, *pair) for pair in pairs) for own in tokenizers}
    if len(found) != 1 or pictures % len(pairs):
        return ()
    return tuple(words for words in found.pop() for _ in range(pictures // len(pairs)))


def _texts(arguments: Mapping[str, Any]) -> list[str]:
    prompt = arguments.get("prompt")
    listed = [prompt] if isinstance(prompt, str) else prompt
    is_text = isinstance(listed, list) and all(isinstance(own, str) for own in listed)
    return listed if is_text and isinstance(listed, list) else []


def _between(tokenizer: Any, old: str, new: str) -> Words:
    before, after = (list(tokenizer(text).input_ids) for text in (old, new))
    spans = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [span for kind, *span in spans if kind != "equal"]
    return Words(
        frozenset(at for start, end, _, _ in changed for at in range(start, end)),
        frozenset(at for _, _, start, end in changed for at in range(start, end)),
    )
