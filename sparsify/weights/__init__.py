"""Weights that are not needed: N:M sparsity, trained, switched and searched for."""

from .batch import Batch, own_samples
from .distill import Step, distill, distillation_loss, teacher_of
from .pattern import NM, PROGRESSIVE
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
    "teacher_of",
]
