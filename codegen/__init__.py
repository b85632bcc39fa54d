"""What the rewritten graphs are made of: geometry tables, packed operators, emission."""
