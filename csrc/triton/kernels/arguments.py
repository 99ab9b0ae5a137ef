"""Declares the kind of each parameter of a kernel, beside the kernel:

    @arguments("x y: *data; rstd: *fp32; D: i32/16; eps: fp32")
    @triton.jit
    def rms_norm(x, y, rstd, D, eps, BLOCK: tl.constexpr): ...

A declaration is a list of `names: kind` separated by semicolons. Kinds:
    *data, *state, *params   pointer to the variant's first, second or third dtype (a variant of
                             state_step has three, such as bf16-fp32-fp32)
    *fp32, *i32, *i64        pointer to that dtype in every variant
    i32, fp32                number
    i32/16                   multiple of 16, so that rows start where 16-byte accesses may; any
                             number in a variant whose constant MASK is set
    box[R,C]                 TMA descriptor of the variant's first dtype, for boxes [1,R,C]; R and C
                             are constants
Pointers are multiples of 16 bytes, except *i64. Constants (tl.constexpr) are not declared.
"""
import re


def arguments(declaration):
    """A decorator that stores {parameter: kind} as the kernel's `kinds`.

    Raises a ValueError unless each parameter that is not a constant is declared exactly once."""
    kinds = {}
    for entry in filter(None, (e.strip() for e in declaration.split(";"))):
        names, kind = (part.strip() for part in entry.split(":"))
        for name in names.split():
            if name in kinds:
                raise ValueError(f"{name} is declared twice")
            kinds[name] = kind

    def declare(kernel):
        function = kernel.fn
        constants = {n for n, t in function.__annotations__.items() if "constexpr" in str(t)}
        parameters = set(function.__code__.co_varnames[:function.__code__.co_argcount]) - constants
        if parameters != set(kinds):
            differing = sorted(parameters ^ set(kinds))
            raise ValueError(f"{function.__name__}: declaration and parameters differ: {differing}")
        kernel.kinds = kinds
        return kernel

    return declare


def signature_of(kernel, dtype, constants):
    """The arguments of Triton's compiler for a variant: types by parameter, and attributes by
    position."""
    data, state, params = (dtype.split("-") + 2 * [dtype])[:3]
    pointers = {"data": data, "state": state, "params": params}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind, divisible = kernel.kinds[name], False
        if kind.startswith("*"):
            divisible = kind != "*i64"
            kind = "*" + pointers.get(kind[1:], kind[1:])
        elif kind == "i32/16":
            divisible = not constants.get("MASK")
            kind = "i32"
        elif kind.startswith("box"):
            rows, columns = (constants[c]
                             for c in re.fullmatch(r"box\[(\w+),(\w+)\]", kind).groups())
            kind = box_type(data, rows, columns)
        signature[name] = kind
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, attributes


def box_type(dtype, rows, columns):
    from triton.experimental.gluon.language import NVMMASharedLayout
    return f"tensordesc<{dtype}[1, {rows}, {columns}],{NVMMASharedLayout(128, 16, rank=3)!r}>"
