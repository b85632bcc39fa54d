"""The program: its commands, each imported when it is called, and how errors end it."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from ..codegen.errors import SparsifyError

COMMANDS = {
    "inspect": "Show by node what an update computes, the masks of all grids, and the work left.",
    "bench": "Time the dense model and the update of an edit, interleaved; medians are shown.",
    "export": "Write the record, plan and update graphs for inputs like the example's to a folder.",
    "run": "Record a picture, update to its edited version, and write what the network makes.",
    "cache": "List the compiled updates that lie on disk, the one used last at the end.",
}
"""Modules of this folder, and the first lines of what their commands say of themselves."""


class _Lazy(TyperCommand):
    """Known by its name and first line until it is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        module = import_module(f".{self.name}", __package__)
        own = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        epilog = "\n\n".join(("Examples:", *module.EXAMPLES))
        own.command(self.name, epilog=epilog)(module.command)
        return typer.main.get_command(own).make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        return ctx.command.invoke(ctx)


class _Commands(TyperGroup):
    """Errors of this package end the program with one line; any other keeps its traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        line = COMMANDS.get(cmd_name)
        return None if line is None else _Lazy(cmd_name, help=line)

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
    epilog="Exit codes: 0 done, 1 an error, told on one line, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sparsify {metadata.version('sparsify')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Makes generative PyTorch models fast to edit with: computes only what an edit touches."""
