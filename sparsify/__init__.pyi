"""Make a generative PyTorch model fast to edit with: compute only what an edit touches."""

from .baseline import Baseline
from .baseline_file import load_baseline, save_baseline
from .codegen.errors import (
    BaselineError,
    CaptureError,
    CompileError,
    ConfigError,
    ExportError,
    FolderError,
    GridError,
    MaskError,
    ModelError,
    OperandError,
    RewriteError,
    SessionError,
    SignatureError,
    SparsifyError,
    SparsifyWarning,
    StoreError,
)
from .config import SparsifyConfig
from .editor import Editor, enable
from .loader import load
from .masks import difference_mask
from .module import SparseModule, dump, sparsify
from .plan import Plan
from .prior_noise import PriorNoise
from .report import Report
from .schedule import Schedule
from .session import Session
from .store import BaselineStore
from .weights import SparseWeights

__all__ = [
    "Baseline",
    "BaselineError",
    "BaselineStore",
    "CaptureError",
    "CompileError",
    "ConfigError",
    "Editor",
    "ExportError",
    "FolderError",
    "GridError",
    "MaskError",
    "ModelError",
    "OperandError",
    "Plan",
    "PriorNoise",
    "Report",
    "RewriteError",
    "Schedule",
    "Session",
    "SessionError",
    "SignatureError",
    "SparseModule",
    "SparseWeights",
    "SparsifyConfig",
    "SparsifyError",
    "SparsifyWarning",
    "StoreError",
    "difference_mask",
    "dump",
    "enable",
    "load",
    "load_baseline",
    "save_baseline",
    "sparsify",
]
