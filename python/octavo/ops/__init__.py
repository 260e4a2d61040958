"""octavo's functions: one file a family, in which each operation is declared, checked and called (op.py)."""
