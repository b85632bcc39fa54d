"""Every error that sparsify raises on purpose; all derive from :class:`SparsifyError`."""


class SparsifyError(Exception):
    """Base class. The message names the node or argument at fault and how to fix it."""


class SparsifyWarning(UserWarning):
    """A result that may not be what was meant, though nothing is wrong with the call."""


class CaptureError(SparsifyError):
    """The model could not be captured as a graph."""


class ConfigError(SparsifyError, ValueError):
    """A configuration field has a value that cannot work."""


class ModelError(SparsifyError, ValueError):
    """What the command line names as a model cannot be built, or its inputs cannot be made."""


class MaskError(SparsifyError, ValueError):
    """A mask has the wrong rank, dtype, size, device, or lies on no known grid."""


class GridError(SparsifyError, ValueError):
    """An input named as spatial does not live on the grid it was said to."""


class SignatureError(SparsifyError, ValueError):
    """A call's inputs differ in structure, shape, dtype or device from the recorded ones."""


class BaselineError(SparsifyError, ValueError):
    """A baseline or a plan belongs to another model, other weights or another signature."""


class SessionError(SparsifyError, RuntimeError):
    """A sampler's call while editing does not match the recorded one."""


class StoreError(SparsifyError, RuntimeError):
    """A store of baselines has no room, was closed, or a file of it is not as it was written."""


class OperandError(SparsifyError, RuntimeError):
    """A kernel was handed a tensor of another dtype, device or size than it reads."""


class CompileError(SparsifyError, RuntimeError):
    """A graph cannot be compiled; it runs as it is."""


class ExportError(SparsifyError, RuntimeError):
    """A model cannot be written in a format."""


class FolderError(SparsifyError, ValueError):
    """A folder that was written cannot be made, or is damaged, of another version, or lacks what
    runs it."""


class RewriteError(SparsifyError, RuntimeError):
    """A rewrite of a graph never comes to an end."""


class VerifyError(SparsifyError, AssertionError):
    """A pass left a graph that breaks an invariant; a defect of sparsify itself."""
