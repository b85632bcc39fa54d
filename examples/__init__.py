"""Trained networks, restated in plain PyTorch, for the examples, benchmarks and tests."""
