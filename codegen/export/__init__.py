"""The three graphs in formats that need nothing of ours to run."""
