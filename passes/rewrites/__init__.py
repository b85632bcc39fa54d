"""Rewrites to the forms that the packing rules know, one family a file.

Each function takes a node and returns the node that stands for it, or None.
"""
