"""What training loops use: whole models in checkpoints, managers of them, prefetching, swapping modules."""
