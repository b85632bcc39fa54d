"""The program: its commands, and how errors end it."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from ..codegen.errors import SparsifyError
from . import bench, export, inspect, run


class _Commands(TyperGroup):
    """Errors of this package end the program with one line; any other keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SparsifyError as error:
            line = " ".join(str(error).split())
            Console(stderr=True).print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    name="sparsify",
    help="Makes generative PyTorch models fast to edit with: computes only what an edit touches.",
    epilog="Exit codes: 0 done, 1 an error, told on one line, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, module in {"inspect": inspect, "bench": bench, "export": export, "run": run}.items():
    app.command(name, epilog="\n\n".join(("Examples:", *module.EXAMPLES)))(module.command)
