"""A store: its life, its tables, and what writes its checkpoints and deltas."""
