"""What lies on disk: checkpoints, deltas, manifests, and the directories that hold them."""
