"""What the rewritten graphs are made of: geometry tables, packed operators, emission."""

if __name__ == "codegen":  # operators would be declared twice
    raise ImportError("codegen/ is installed as a part of sparsify: import sparsify.codegen")
