"""What tables hold, and how two checkpoints differ: read row by row, in the order of ids. Needs no torch."""
