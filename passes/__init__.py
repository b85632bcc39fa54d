"""The compiler: fx graph in, fx graph out; one pass a file. Knows no kernel."""

if __name__ == "passes":  # rules would be registered twice
    raise ImportError("passes/ is installed as a part of sparsify: import sparsify.passes")
