"""Triton kernels of the trainer's hot operations: launchers, autograd wrappers, tables of tiles, and the proof without a GPU."""
