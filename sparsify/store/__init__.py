"""Where the values of recorded calls lie: memory of the device, memory of the host, files."""

from .store import BaselineStore, Calls

__all__ = ["BaselineStore", "Calls"]
