"""The Triton kernels: one module per group of operators."""
