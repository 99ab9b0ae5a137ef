"""Checks of the kernels against plain PyTorch, and the scan's launches in Python."""
