"""Compiles the kernels ahead of time and writes the header of their block sizes."""
