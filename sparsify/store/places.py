"""Where the values of a baseline lie, and how they get back to the devices that made them.

On CUDA they travel on a stream of their own, between pinned memory and the device, and events tell
other streams when they have arrived: the host waits only for what it writes to a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from ..codegen.errors import StoreError
from .scratch import Scratch
from .values_file import Tensors, ValuesFile

Devices = Mapping[str, torch.device]


@dataclass(frozen=True, eq=False)
class Arriving:
    """Tensors of which those on CUDA, or in pinned memory, are there after ``event``."""

    tensors: Mapping[str, Tensor]
    event: torch.cuda.Event | None = None

    def here(self) -> Tensors:
        """For the current stream."""
        if self.event is not None:
            for tensor in self.tensors.values():
                if tensor.is_cuda:
                    stream = torch.cuda.current_stream(tensor.device)
                    stream.wait_event(self.event)
                    tensor.record_stream(stream)
        return dict(self.tensors)

    def waited_for(self) -> Mapping[str, Tensor]:
        """For the host."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors


class Place(Protocol):
    """Where values lie. Its contents never change."""

    def fetched(self) -> Arriving:
        """On the devices that made them."""
        ...

    def on_host(self) -> Arriving:
        """On the host, to be put elsewhere."""
        ...


class AsMade:
    """On their devices, as they were made."""

    def __init__(self, tensors: Tensors) -> None:
        device = _cuda(tensors)
        event = None if device is None else torch.cuda.current_stream(device).record_event()
        self._tensors = Arriving(tensors, event)

    def fetched(self) -> Arriving:
        return self._tensors

    def on_host(self) -> Arriving:
        tensors = self._tensors.tensors
        device = _cuda(tensors)
        if device is None:
            return Arriving({name: tensor.cpu() for name, tensor in tensors.items()})
        stream = _stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            if self._tensors.event is not None:
                stream.wait_event(self._tensors.event)
            copies = {name: _pinned(tensor) for name, tensor in tensors.items()}
            for tensor in tensors.values():
                if tensor.is_cuda:
                    tensor.record_stream(stream)
            return Arriving(copies, stream.record_event())


class OnHost:
    """In pinned memory, if they are of CUDA."""

    def __init__(self, copies: Arriving, devices: Devices) -> None:
        self._copies, self._devices = copies, devices

    def fetched(self) -> Arriving:
        return _sent(self._copies, self._devices)

    def on_host(self) -> Arriving:
        return self._copies


class OnDisk:
    """In a file, which goes with this object; the ``folder`` does not go before."""

    def __init__(self, folder: Scratch, name: str, copies: Arriving, devices: Devices) -> None:
        self._folder, self._devices = folder, devices
        self._file = ValuesFile(folder.path / name, copies.waited_for())
        self._is_pinned = any(device.type == "cuda" for device in devices.values())

    def fetched(self) -> Arriving:
        return _sent(self.on_host(), self._devices)

    def on_host(self) -> Arriving:
        return Arriving(self._file.read(self._is_pinned))


class Closed:
    """Nowhere: the store is closed."""

    def fetched(self) -> NoReturn:
        raise StoreError("the store of this baseline was closed: record again, inside of the store")

    def on_host(self) -> NoReturn:
        self.fetched()


CLOSED = Closed()


def pinned_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What they take in pinned memory, of which torch gives powers of two to those of CUDA."""
    return sum(
        1 << (tensor.nbytes - 1).bit_length() if tensor.is_cuda else tensor.nbytes
        for tensor in tensors.values()
    )


def _sent(copies: Arriving, devices: Devices) -> Arriving:
    """To ``devices``."""
    cuda = next((device for device in devices.values() if device.type == "cuda"), None)
    if cuda is None:
        return Arriving({name: own.to(devices[name]) for name, own in copies.tensors.items()})
    stream = _stream(cuda)
    with torch.cuda.device(cuda), torch.cuda.stream(stream):
        if copies.event is not None:
            stream.wait_event(copies.event)
        # Of pinned memory torch knows until when a copy reads it.
        sent = {n: own.to(devices[n], non_blocking=True) for n, own in copies.tensors.items()}
        return Arriving(sent, stream.record_event())


def _pinned(tensor: Tensor) -> Tensor:
    """A copy on the host, which is there once the current stream has come so far."""
    if not tensor.is_cuda:
        return tensor
    own = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return own.copy_(tensor, non_blocking=True)


def _cuda(tensors: Mapping[str, Tensor]) -> torch.device | None:
    return next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one on which values travel."""
    return torch.cuda.Stream(device)
