"""Programs as ONNX models whose weights lie in a safetensors file beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .. import opaque, ops
from ..errors import ExportError, FolderError
from .programs import Pure, quiet, reason
from .pt2 import Run

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 23
_NO_NUMPY = (torch.bfloat16,)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kw: Any,
) -> Tensor:
    """Attention of four axes; ONNX has it for no others."""
    if query.dim() != 3:
        return opaque.attention(query, key, value, attn_mask, *args, **kw)
    mask = None if attn_mask is None else attn_mask.unsqueeze(0)
    one = (tensor.unsqueeze(0) for tensor in (query, key, value))
    return opaque.attention(*one, mask, *args, **kw).squeeze(0)


def _cdist(rows: Tensor, codes: Tensor, p: float = 2, *args: Any) -> Tensor:
    """Euclidean distances from products. They do not depend on where the centre of the codes
    lies, but cancellation does."""
    if p != 2:
        return torch.cdist(rows, codes, p)
    wide = torch.promote_types(rows.dtype, torch.float32)
    centre = codes.to(wide).mean(-2, keepdim=True)
    x, y = rows.to(wide) - centre, codes.to(wide) - centre
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * x @ y.mT).clamp(min=0).sqrt().to(rows.dtype)


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Output padding of a stride and more, which a dilation allows, is rows of the bias alone."""
    step, before, after = ([*pair] * (2 // len(pair)) for pair in (stride, padding, output_padding))
    operator = torch.nn.functional.conv_transpose2d
    if after[0] < step[0] and after[1] < step[1]:
        return operator(x, weight, bias, step, before, after, groups, dilation)
    whole = operator(x, weight, None, step, 0, 0, groups, dilation)
    pads = [pad for axis in (1, 0) for pad in (-before[axis], after[axis] - before[axis])]
    y = torch.nn.functional.pad(whole, pads)
    return y if bias is None else y + bias[:, None, None]


def _adaptive_max_pool(image: Tensor, size: Sequence[int]) -> Tensor:
    """The largest of each window, one window after the other; few ask for it."""
    for dim, count in ((-2, size[0]), (-1, size[1])):
        length = image.shape[dim]
        ends = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        windows = [image.narrow(dim, start, end - start) for start, end in ends]
        image = torch.cat([window.amax(dim, keepdim=True) for window in windows], dim)
    return image


def _index_select(x: Tensor, dim: int, index: Tensor) -> Any:
    """Of complex numbers, which ONNX has as pairs."""
    if not x.is_complex():
        return NotImplemented
    return torch.view_as_complex(torch.view_as_real(x).index_select(dim % x.dim(), index))


# What an exporter to ONNX does not know, or not in all forms, in terms of what it knows.
_IN_OTHER_WORDS: dict[Any, Any] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    opaque.attention: _attention,
    torch.ops.aten.conv_transpose2d.input: _conv_transpose2d,
    ops.adaptive_max_pool: _adaptive_max_pool,
    torch.ops.aten.cdist.default: _cdist,
    opaque.cdist: _cdist,
}


_DECOMPOSED: dict[Any, Any] = {torch.ops.aten.index_select.default: _index_select}
"""The same, where they are inside of our own operators."""


def _without_complex_rows(exported: ExportedProgram) -> ExportedProgram:
    values = (node.meta.get("val") for node in exported.graph.nodes)
    if not any(isinstance(value, Tensor) and value.is_complex() for value in values):
        return exported  # traced no second time
    decomposed: ExportedProgram = exported.run_decompositions(_DECOMPOSED)
    return decomposed


def require_installed() -> None:
    """Raises :class:`ExportError` if a package that writes ONNX models is missing."""
    missing = [name for name in ("onnx", "onnx_ir", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f'format="onnx" needs {missing[0]}, which is missing: '
            "pip install 'sparsify[export]'; format=\"pt2\" needs nothing more"
        )


def prepare(function: Pure) -> None:
    """To be called before the graph becomes a program."""
    for node in function.module.graph.nodes:
        node.target = _IN_OTHER_WORDS.get(node.target, node.target)
    function.module.recompile()


@dataclass(frozen=True)
class Stored:
    """Where a weight lies: ``length`` bytes of a file, from ``offset`` on."""

    shape: tuple[int, ...]
    offset: int
    length: int


def write(
    exported: ExportedProgram,
    function: Pure,
    path: Path,
    weights: Path,
    stored: Mapping[str, Stored],
) -> None:
    """Writes a checked model; its weights are ranges of the file ``weights`` in its folder.

    Raises :class:`ExportError`.
    """
    import onnx
    import onnx_ir as ir

    _require_numpy(exported, function)
    try:
        with quiet():
            converted = torch.onnx.export(
                _without_complex_rows(exported),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=False,
                verbose=False,
            )
        assert converted is not None
        model = _tidied(converted.model)
    except Exception as error:
        raise ExportError(
            f"the {function.name} graph has no form in ONNX: {reason(error.__cause__ or error)}. "
            'format="pt2" has every operator'
        ) from error
    graph = model.graph
    for value in (value for node in graph.all_nodes() for value in node.outputs):
        value.name = f"/{value.name}"  # so that no name of the caller's is taken
    values = list(graph.inputs)
    for value, name in zip(values, (*function.inputs, *function.weights), strict=True):
        value.name = name
    for value, name in zip(values[len(function.inputs) :], function.weights, strict=True):
        place = stored[name]
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            weights.name,
            place.offset,
            place.length,
            value.dtype,
            shape=ir.Shape(place.shape),
            name=name,
            base_dir=weights.parent,
        )
        graph.inputs.remove(value)
        graph.register_initializer(value)
    for value, name in zip(graph.outputs, function.outputs, strict=True):
        value.name = name
    ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(
            f"the {function.name} graph is no valid ONNX model: {reason(error)}. Report this"
        ) from error


def _tidied(model: ir.Model) -> ir.Model:
    """The model without what is constant, unused or there twice.

    ``torch.onnx.export(optimize=True)`` does more, but one of its rules (``SlicesSplit``) looks at
    all nodes for each of them: hours for an update of ten thousand.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    tidy = Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    return tidy(model).model


def read(path: Path, weights: Mapping[str, Tensor] = {}) -> Run:
    """A session on the CPU, with ``weights`` in place of those that the model has by these names.
    Raises :class:`FolderError` without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise FolderError(
            "an ONNX folder is run by onnxruntime, which is missing: pip install 'sparsify[export]'"
        ) from None
    options, value_of = onnxruntime.SessionOptions(), onnxruntime.OrtValue.ortvalue_from_numpy
    held = {name: value_of(weight.numpy()) for name, weight in weights.items()}
    options.add_external_initializers(list(held), list(held.values()))  # before it folds constants
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FolderError(f"onnxruntime cannot run {path.name}: {reason(error)}") from error
    names = [value.name for value in session.get_inputs()]

    # The session reads from `held`, which nothing else keeps.
    def run(tensors: Sequence[Tensor], _: Any = held) -> list[Tensor]:
        given: dict[str, Any] = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


def _require_numpy(exported: ExportedProgram, function: Pure) -> None:
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dtype in _NO_NUMPY:
            raise ExportError(
                f"the {function.name} graph takes {value.dtype}, which onnxruntime has no arrays "
                "for: export a model in float32 or float16"
            )
