"""The compiler: fx graph in, fx graph out; one pass a file. Knows no kernel."""
