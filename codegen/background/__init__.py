"""Graphs compiled by another process, while this one runs them uncompiled."""
