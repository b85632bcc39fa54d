"""Weights that are not needed: N:M sparsity, trained, switched and searched for."""

from ..codegen.nm.pattern import NM
from .batch import Batch, own_samples, relative_error
from .distill import Step, distill, distillation_loss, teacher_of
from .progressive import PROGRESSIVE
from .search import Found
from .sparse_weights import SparseWeights

__all__ = [
    "NM",
    "PROGRESSIVE",
    "Batch",
    "Found",
    "SparseWeights",
    "Step",
    "distill",
    "distillation_loss",
    "own_samples",
    "relative_error",
    "teacher_of",
]
