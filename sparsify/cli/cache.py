"""``sparsify cache``: what was compiled, for processes to come."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from ..codegen.background.packages import Packages, default_folder
from ..words import size_of
from .options import console

EXAMPLES = ("sparsify cache", "sparsify cache --clear")


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """List the compiled updates that lie on disk, the one used last at the end."""
    packages = Packages(default_folder())
    if clear:
        console.print(f"removed {size_of(packages.clear())} from {packages.folder}")
        return
    table, total = Table("key", "used last"), 0
    table.add_column("size", justify="right")
    for path in packages.all():
        status = path.stat()
        used = datetime.fromtimestamp(status.st_mtime).strftime("%Y-%m-%d %H:%M")
        table.add_row(path.stem[:12], used, size_of(status.st_size))
        total += status.st_size
    console.print(table)
    most = size_of(packages.most_bytes)
    console.print(f"{size_of(total)} of {most} in {packages.folder}")
