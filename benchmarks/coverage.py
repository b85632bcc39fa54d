"""What happens to every model class of diffusers: ``python -m benchmarks.coverage``.

For each class a tiny configuration is captured, rewritten and edited at three mask sizes; its
updates are compared with the dense run (policy "exact") and with the oracle (policy "fixed").
Parts that sampling steps may reuse are looked for, and reused. Published configurations of the best
known are rewritten on the meta device. Writes ``coverage.md`` and ``coverage.json`` under
``--out``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.progress import track
from sparsify.codegen.errors import ConfigError, SparsifyError
from sparsify.passes.macs import macs_of
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks import zoo
from benchmarks.machine import environment
from sparsify import sparsify
from sparsify.masks import centred_square
from sparsify.oracle import oracle, relative
from sparsify.report import Report
from sparsify.signature import bind

PARTS = ("encoder", "deep", "blocks")
SHARES = (0.01, 0.1, 0.5)
EXACT, FIXED = 1e-4, 1e-5
"""Largest errors relative to the largest magnitude of the output, fp32."""
console = Console()


def edited(example: zoo.Example, mask: Tensor) -> dict[str, Any]:
    """The inputs with small noise added inside the mask: random weights make large edits chaotic,
    and rounding would be all that a comparison shows."""
    before = example.inputs[example.edit]
    on_grid = tuple(before.shape[-2:]) == tuple(mask.shape)
    inside = mask if on_grid else mask.flatten()[:, None]
    is_float = before.is_floating_point()  # numbers of tokens are exchanged
    after = before + 0.1 * torch.randn_like(before) if is_float else before.roll(1, -1)
    after = torch.where(inside, after, before)
    return {**example.inputs, example.edit: after}


def fallbacks(report: Report) -> list[dict[str, Any]]:
    """By operator and reason: how many nodes, and their share of the MACs."""
    groups: dict[tuple[str, str], list[int]] = {}
    for node in report.fallbacks:
        groups.setdefault((node.operator, node.reason), []).append(node.macs)
    total = max(report.macs_dense, 1)
    rows = [
        {"operator": name, "reason": reason, "nodes": len(macs), "share": sum(macs) / total}
        for (name, reason), macs in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["share"], -row["nodes"]))


def shares(report: Report) -> dict[str, float]:
    return {state: report.share(state) for state in ("packed", "dense", "static", "fallback")}


def examine(name: str) -> dict[str, Any]:
    """Captures, rewrites and edits the example of a class; what went wrong is a row too."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"name": name}
    try:
        example = zoo.TINY[name]()
    except Exception as error:  # a newer diffusers may build it otherwise
        return {**row, "state": "not built", "reason": _first_line(error)}
    try:
        for policy in ("exact", "fixed"):
            row |= _compare(example, policy)
    except SparsifyError as error:
        return {**row, "state": "refused", "reason": _first_line(error)}
    except Exception as error:  # our own failure: the row shows it
        return {**row, "state": "failed", "reason": _first_line(error)}
    right = row["exact_error"] <= EXACT and row["fixed_error"] <= FIXED  # NaN is neither
    return {**row, "state": "right" if right else "wrong"}


def _compare(example: zoo.Example, policy: str) -> dict[str, Any]:
    """The largest error at three mask sizes; for "fixed" also what was packed."""
    options = {"dense_share": 0.0, "dilate": 0, **example.options}
    sparse = sparsify(example.model, backend="eager", policy=policy, **options)
    output, baseline = sparse.record(**example.inputs)
    old = bind(example.model, (), example.inputs).leaves
    worst = moved = 0.0
    for share in SHARES:
        mask = centred_square(baseline.grid, share)
        new = edited(example, mask)
        plan = sparse.plan(mask)
        got = sparse.update(baseline, mask=plan, **new)
        if policy == "exact":
            want = example.model(**new)
            moved = relative(want, output)
        else:
            leaves = bind(example.model, (), new).leaves
            want = oracle(sparse._engine.program_of(baseline), plan, old, leaves)
        error = relative(got, want)
        worst = error if error != error else max(worst, error)
    if policy == "exact" and not moved:
        raise ValueError("the example shows nothing: its output does not depend on the edit")
    result: dict[str, Any] = {f"{policy}_error": worst}
    if policy == "fixed":
        report = sparse.report()
        result |= {"shares": shares(report), "fallbacks": fallbacks(report)}
    return result


def examine_parts(name: str) -> dict[str, Any]:
    """Of each part that the model has: the MACs of a step that reuses it over those of the model,
    and the error of such a step that is given the values of its own inputs."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts: dict[str, dict[str, float]] = {}
    try:
        example = zoo.TINY[name]()
        options = {"dense_share": 0.0, "dilate": 0, **example.options}
        engine = sparsify(example.model, backend="eager", **options)._engine
        call = engine.bind((), example.inputs)
        for part in PARTS:
            try:
                program = engine.program(call, part)
            except ConfigError:  # the model has no such part
                continue
            output, values = program.step(call, None)
            again, _ = program.step(call, values)
            work = {form: macs_of(program.graphs[form].graph) for form in ("dense", "reuse")}
            share = work["reuse"] / max(work["dense"], 1)
            parts[part] = {"share": share, "error": relative(again, output)}
    except Exception as error:
        return {"name": name, "parts": parts, "parts_failed": _first_line(error)}
    return {"name": name, "parts": parts}


def examine_full(name: str) -> dict[str, Any]:
    """What is packed of a published configuration; shapes alone decide."""
    torch.set_grad_enabled(False)
    try:
        with torch.device("meta"):
            example = zoo.FULL[name]()
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example.inputs)
        sparse = sparsify(example.model, **{"dense_share": 0.0, **example.options})
        sparse.graphs(**inputs)
        report = sparse.report()
    except Exception as error:
        return {"name": name, "state": "failed", "reason": _first_line(error)}
    result = {"shares": shares(report), "fallbacks": fallbacks(report)}
    return {"name": name, "state": "captured", "gmacs": report.macs_dense / 1e9, **result}


def _first_line(error: Exception) -> str:
    """Without the folders of this machine."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return re.sub(r"/\S*/(?=site-packages/|benchmarks/)", "", text)[:300]


def apart(task: Callable[[str], dict[str, Any]], name: str, seconds: int) -> dict[str, Any]:
    """The row of ``task``, made in a process of its own: a crash is a row as well."""
    context = multiprocessing.get_context("fork")  # the imports above take long
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(task(name)))
    process.start()
    sender.close()
    row = {"name": name, "state": "failed", "reason": f"took more than {seconds} s"}
    if receiver.poll(seconds):
        try:
            row = receiver.recv()
        except EOFError:
            row["reason"] = "the process died"
    process.kill()
    process.join()
    return row


def markdown(result: dict[str, Any]) -> str:
    """The tables as a page."""
    rows = result["classes"]
    count = {state: sum(row["state"] == state for row in rows) for state in STATES}
    lines = [
        "# Coverage",
        "",
        f"diffusers {result['diffusers']}, torch {result['torch']}; tiny configurations, fp32, "
        f"edits of {', '.join(f'{share:.0%}' for share in SHARES)} of the picture. *exact* is the "
        "largest error against the dense run, *fixed* against the oracle, relative to the largest "
        "magnitude of the output. Shares are of the dense multiply-accumulates; what is static is "
        "recorded, and no update computes it. *Parts* are what steps of a sampling run may reuse "
        "beside the output, with the share of the multiply-accumulates that is then left, and the "
        "largest error of a step that is given what it would have computed itself.",
        "",
        ", ".join(f"{number} {state}" for state, number in count.items() if number),
        "",
        "| class | state | packed | static | fallback | exact | fixed | parts | falls back |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "## Published configurations",
        "",
        "| network | GMACs | packed | static | fallback | falls back |",
        "|---|---|---|---|---|---|",
        *(_full_line(row) for row in result["published"]),
    ]
    return "\n".join(lines) + "\n"


STATES = (
    *("right", "wrong", "failed", "refused"),
    *("not built", "not run", "no example", "no picture"),
)


def _line(row: dict[str, Any]) -> str:
    if "shares" not in row:
        return f"| {row['name']} | {row['state']} | | | | | | | {_cell(row['reason'])} |"
    errors = f"{row['exact_error']:.0e} | {row['fixed_error']:.0e} | {_parts(row)}"
    return f"| {row['name']} | {row['state']} | {_shares(row)} | {errors} | {_reasons(row)} |"


def _parts(row: dict[str, Any]) -> str:
    found = row.get("parts", {}).items()
    parts = [f"{name} {own['share']:.0%} ({own['error']:.0e})" for name, own in found]
    return _cell(", ".join([*parts, *filter(None, [row.get("parts_failed")])]))


def _full_line(row: dict[str, Any]) -> str:
    if "shares" not in row:
        return f"| {row['name']} | | | | | {_cell(row['reason'])} |"
    return f"| {row['name']} | {row['gmacs']:.0f} | {_shares(row)} | {_reasons(row)} |"


def _shares(row: dict[str, Any]) -> str:
    return " | ".join(f"{row['shares'][state]:.1%}" for state in ("packed", "static", "fallback"))


def _reasons(row: dict[str, Any]) -> str:
    """What falls back first; all behind it only says that the arrangement is unknown."""
    if not row["shares"]["fallback"]:
        return ""
    first = [f for f in row["fallbacks"] if not f["reason"].startswith("the arrangement of")]
    return "; ".join(_cell(f"{f['nodes']}x {f['operator']}: {f['reason']}") for f in first[:3])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def without_run(name: str) -> dict[str, Any]:
    """The row of a class before it was examined, or of one that cannot be."""
    if name in zoo.NO_PICTURE:
        return {"name": name, "state": "no picture", "reason": zoo.NO_PICTURE[name]}
    known = name in zoo.TINY
    state = "not run" if known else "no example"
    return {"name": name, "state": state, "reason": "" if known else "new in diffusers"}


def earlier(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The rows of classes and of published configurations that a run cut short has left."""
    path = folder / "coverage.json"
    result = json.loads(path.read_text()) if path.exists() else {"classes": [], "published": []}
    done = {row["name"]: row for row in result["classes"] if row["state"] != "not run"}
    return done, {row["name"]: row for row in result["published"]}


def save(folder: Path, rows: list[dict[str, Any]], published: list[dict[str, Any]]) -> None:
    """Written after every row, so that a run cut short leaves what it has."""
    result = {
        **environment(),
        "diffusers": diffusers.__version__,
        "classes": sorted(rows, key=lambda row: (STATES.index(row["state"]), row["name"])),
        "published": sorted(published, key=lambda row: row["name"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "coverage.md").write_text(markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; all without")
    parser.add_argument("--seconds", type=int, default=300, help="at most, for a class")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has")
    options = parser.parse_args()
    zoo.load()
    rows = {n: without_run(n) for n in options.names or {*zoo.classes(), *zoo.TINY}}
    done, full = earlier(options.out) if options.resume else ({}, {})
    rows |= {name: row for name, row in done.items() if name in rows}
    published = list(full.values())
    work = [
        (examine_full, name) for name in sorted(zoo.FULL) if not options.names and name not in full
    ]
    work += [(examine, name) for name, row in sorted(rows.items()) if row["state"] == "not run"]
    unknown = [n for n, row in sorted(rows.items()) if row["state"] in ("right", "not run")]
    work += [(examine_parts, name) for name in unknown if "parts" not in rows[name]]
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(apart, *item, options.seconds): item[0] for item in work}
        for future in track(as_completed(futures), total=len(futures), description="examining"):
            row = future.result()
            if futures[future] is examine:
                rows[row["name"]] = row
            elif futures[future] is examine_parts:
                failed = {"parts": {}, "parts_failed": row.get("reason", "")}
                rows[row["name"]] |= row if "parts" in row else failed
            else:
                published.append(row)
            save(options.out, list(rows.values()), published)
    console.print((options.out / "coverage.md").read_text(), markup=False)


if __name__ == "__main__":
    main()
