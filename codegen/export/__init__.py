"""The graphs in formats that need nothing of this package to run."""
