"""Rewrites to the forms that the packing rules know, one family a file.

Each is declared by the operators that it matches (:mod:`sparsify.passes.rewrite`).
"""
