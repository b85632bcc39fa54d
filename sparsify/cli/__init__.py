"""The command line: ``sparsify inspect | export | run | bench``."""
