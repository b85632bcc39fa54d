"""``python -m sparsify``: the command line."""

from .cli.app import app

if __name__ == "__main__":
    app(prog_name="sparsify")
