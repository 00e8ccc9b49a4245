"""Rows of which no byte is to be left: in checkpoints, deltas, working copies, and what else lies in a store."""
