"""Processes whose torch may be made to believe anything: the belief ends with them."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def in_child(function: Callable[..., Result], *args: Any) -> Result:
    """``function(*args)`` in a fork of this process: nothing but the result is pickled.

    A graph module cannot be sent to a fresh process, and the compiler caches what it finds out
    about the machine in too many places to undo.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        result, error = None, "the process died"
    process.join()
    if error is not None:
        raise RuntimeError(f"{function.__name__} failed in a child process:\n{error}")
    return result


def _run(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # a fork has none of the threads that its parent's pool counts on
    try:
        outcome = function(*args), None
    except BaseException:
        outcome = None, traceback.format_exc()
    sender.send(outcome)
