"""The tensors that the checks pass to kernels: NumPy arrays in Triton's interpreter, PyTorch
tensors on a GPU.

TRITON_INTERPRET=1 selects the interpreter, which needs no PyTorch and computes in float32 only.
References are NumPy arrays in float64.
"""
import os

import numpy as np

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
PDL = False  # no programmatic dependent launch
DTYPES = ("fp32",) if INTERPRET else ("fp32", "bf16", "fp16")

if INTERPRET:
    np.seterr(all="ignore")  # masked elements overflow, as they do on a GPU
    NAMES = {"fp32": np.float32, "fp64": np.float64, "i32": np.int32, "i64": np.int64,
             "u8": np.uint8}

    class Array(np.ndarray):
        """An array with the methods of a PyTorch tensor that the interpreter and host.py call."""

        def data_ptr(self):
            return self.ctypes.data

        def stride(self, i=None):
            strides = tuple(s // self.itemsize for s in self.strides)
            return strides if i is None else strides[i]

        def size(self):
            return self.shape

        def double(self):
            return self.astype(np.float64)

        def float(self):
            return self.astype(np.float32)

        def contiguous(self):
            return np.ascontiguousarray(self).view(Array)

        def flip(self, axis):
            return np.flip(self, axis)

        # The interpreter copies arguments to the host and back with these; an array is on the host.
        def untyped_storage(self):
            return self

        def cpu(self):
            return self

        def new_empty(self, size, device):
            return self

        def storage_offset(self):
            return 0

        def set_(self, *place):
            return self

        def copy_(self, source):
            return self

    def tensor(values, dtype="fp32"):
        """A new contiguous tensor of these values."""
        return np.array(values, dtype=NAMES[dtype], order="C").view(Array)

    def empty(*shape, dtype="fp32"):
        return tensor(np.full(shape, np.nan), dtype)

    def zeros(*shape, dtype="fp32"):
        return tensor(np.zeros(shape), dtype)

    def host(t):
        """The tensor's values as a new NumPy array, floating-point ones in float64."""
        return np.array(t, dtype=np.float64 if t.dtype.kind == "f" else np.int64)

    def dtype_of(t):
        return next(name for name, dtype in NAMES.items() if t.dtype == dtype)

    def programs():
        """How many programs the scan is cut for."""
        return 4

    def hopper():
        return False

else:
    import torch

    NAMES = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp64": torch.float64,
        "i32": torch.int32,
        "i64": torch.int64,
        "u8": torch.uint8
    }

    def tensor(values, dtype="fp32"):
        """A new contiguous tensor of these values."""
        return torch.tensor(np.ascontiguousarray(values), device="cuda").to(NAMES[dtype])

    def empty(*shape, dtype="fp32"):
        return torch.empty(shape, dtype=NAMES[dtype], device="cuda")

    def zeros(*shape, dtype="fp32"):
        return torch.zeros(shape, dtype=NAMES[dtype], device="cuda")

    def host(t):
        """The tensor's values as a new NumPy array, floating-point ones in float64."""
        return t.detach().to(torch.float64 if t.is_floating_point() else torch.int64).cpu().numpy()

    def dtype_of(t):
        return next(name for name, dtype in NAMES.items() if t.dtype == dtype)

    def programs():
        """How many programs the scan is cut for."""
        return 264

    def hopper():
        return torch.cuda.get_device_capability()[0] == 9


def unwritten(*shape, dtype="fp32"):
    """A tensor of NaN, so that elements that no kernel writes show."""
    return tensor(np.full(shape, np.nan), dtype)
