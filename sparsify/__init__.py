"""Make a generative PyTorch model fast to edit with: compute only what an edit touches."""

import lazy_loader

# What `__init__.pyi` imports is imported at its first use: `sparsify --help` needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
