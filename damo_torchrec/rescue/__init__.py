"""Damaged checkpoints: what is wrong with them, and what can be saved."""
