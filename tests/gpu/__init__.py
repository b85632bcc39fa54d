"""What only a GPU can show: ``make gpu``. Elsewhere everything here is skipped."""
