"""The launches of the scan in Python, as csrc/cuda/ssd_triton.cpp makes them."""
import math

import triton

from check import device

from kernels import ssd_backward as bw
from kernels import ssd_forward as fw
from kernels import ssd_hopper as hw
from kernels import tuning

SIZES = tuning.values("ssd")
HEADS = tuning.values("prepare")["HEADS"]
BLOCK = tuning.values("state_passing")["BLOCK"]
OPTIONS = {}  # launch options of a sweep, by kernel; without one the tuning table's


def launch(kernel, grid, *arguments, **constants):
    name = kernel.fn.__name__
    kernel[grid](*arguments, **constants, **OPTIONS.get(name, tuning.options(name, **constants)))


def box(t, q):
    """A descriptor of [B,L,A,W] as [B,L,A·W], in boxes of q tokens of one a."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
    B, L, A, W = t.shape
    return TensorDescriptor(t, [B, L, A * W],
                            [t.stride(0) if B > 1 else L * t.stride(1),
                             t.stride(1), 1], [1, q, W], NVMMASharedLayout(128, 16, rank=3))


def cdiv(a, b):
    return (a + b - 1) // b


class Scan:
    def __init__(self, x, dt, a, b, c, d=None, bias=None, initial=None, seg=None, chunk=64,
                 window=-1, softplus=True, dt_min=0.0, dt_max=math.inf, block=None, programs=None,
                 alone=False):
        """alone: no backward pass follows, so that the sequence is cut for the forward pass."""
        self.args = (x, dt, a, b, c, d, bias, initial, seg)
        self.B, self.L, self.H, self.P = x.shape
        self.G, self.N = b.shape[2:]
        self.softplus, self.dt_min, self.dt_max, self.window = softplus, dt_min, dt_max, window
        self.dtype = device.dtype_of(x)
        exact = self.dtype == "fp32"
        self.Q = block or tuning.values("ssd", "fp32" if exact else "")["Q"]
        if window >= 0:
            self.Q = min(self.Q, chunk)
        self.blocks = cdiv(self.L, self.Q)
        aligned = all(t.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in t.stride()[:2])
                      for t in (x, b, c))
        hopper = tuple(tuning.values("scan_hopper")[k] for k in "PNQ")
        self.fast = not exact and aligned and (self.P, self.N, self.Q) == hopper and device.hopper()
        rows = self.B * self.H
        if window > 0:
            self.span = chunk // self.Q
        else:
            programs_given = programs is not None
            programs = programs or device.programs() // (2 if self.fast and alone else 1)
            self.span = cdiv(self.blocks, max(1, min(self.blocks, programs // rows)))
            if not programs_given:
                self.span = max(self.span, min(SIZES["SHORTEST"], self.blocks))
            if window == 0:
                each = chunk // self.Q
                self.span = cdiv(self.span, each) * each
        # The scan works on few long segments, all other kernels on pieces of them.
        self.scan_span, self.ratio = self.span, 1
        if window < 0 and self.span < self.blocks:
            self.ratio = min(self.span, SIZES["RATIO"])
            self.span = cdiv(self.span, self.ratio)
            self.scan_span = self.span * self.ratio
        self.segments = cdiv(self.blocks, self.span)
        self.reset = chunk // self.Q if window == 0 else 0
        self.shape = dict(
            Q=self.Q, BN=max(16, triton.next_power_of_2(self.N)),
            MASK=triton.next_power_of_2(self.N) != self.N
            or triton.next_power_of_2(self.P) != self.P, PRECISION="tf32x3" if exact else "tf32")
        self.wide = dict(BP=max(16, triton.next_power_of_2(self.P)), **self.shape)
        self.long = dict(FETCH=not device.INTERPRET, **self.wide)
        self.exact = exact
        self.joins = window > 0 or (window < 0 and (self.segments > 1 or initial is not None))

    def strides(self, *ts):
        return [s for t in ts for s in t.stride()[:2]]

    def forward(self, grad=True):
        x, dt, a, b, c, d, bias, initial, seg = self.args
        B, L, H, P, G, N, Q = self.B, self.L, self.H, self.P, self.G, self.N, self.Q
        line = (B, H, self.blocks * Q)
        self.step, self.sums, self.columns = (device.empty(*line) for _ in range(3))
        self.enter, self.leave, self.weight = (device.empty(*line) for _ in range(3))
        self.rest, self.rest_columns = (device.empty(*line) if self.exact else self.step
                                        for _ in range(2))
        self.through = device.empty(B, H, self.blocks)
        launch(fw.prepare, (self.blocks, cdiv(H, HEADS), B), dt, bias, a, seg, self.step, self.sums,
               self.columns, self.rest, self.rest_columns,
               self.enter, self.leave, self.weight, self.through, L, H, self.blocks,
               *self.strides(dt), self.reset, self.dt_min, self.dt_max, HAS_BIAS=bias is not None,
               HAS_SEQ=seg is not None, SOFTPLUS=self.softplus, REST=self.exact, KEEP=grad, Q=Q,
               HEADS=HEADS)
        self.cb = device.empty(B, G, self.blocks, Q, Q, dtype=self.dtype)
        launch(fw.cb_gemm, (self.blocks, G, B), b, c, self.cb, L, G, self.blocks, N,
               *self.strides(b, c), **self.shape)
        self.entry = self.joined(x, b, self.weight, initial, False, not grad and self.window < 0)[0]
        y, final = device.empty(B, L, H, P, dtype=self.dtype), device.empty(B, H, P, N)
        if self.fast:
            rows, segments = B * H, cdiv(self.blocks, self.scan_span)
            boxes = [box(t, Q) for t in (x, b, c, y, self.cb.view(B * G, self.blocks * Q, 1, Q))]
            programs = cdiv(rows * segments, cdiv(rows * segments, device.programs() // 2))
            launch(hw.scan_hopper, (programs, ), *boxes, self.sums, self.columns, self.enter,
                   self.weight, self.entry, d, seg, final, L, H, H // G, self.blocks, rows,
                   self.scan_span, segments, self.segments, self.ratio, HAS_D=d is not None,
                   HAS_SEQ=seg is not None, HAS_ENTRY=self.joins, Q=Q, P=P, N=N,
                   STAGES=tuning.values("scan_hopper")["STAGES"])
            return y, final
        launch(fw.scan, (B * H, cdiv(self.blocks, self.scan_span)), x, b, c, self.cb, self.sums,
               self.columns, self.rest, self.rest_columns, self.enter, self.weight, self.through,
               self.entry, d, seg, y, final, L, H,
               H // G, self.blocks, self.scan_span, self.segments, self.ratio, P, N,
               *self.strides(x, b, c), HAS_D=d is not None, HAS_SEQ=seg is not None,
               HAS_ENTRY=self.joins, REST=self.exact, **self.long)
        return y, final

    def joined(self, x, b, weight, initial, reverse, coarse=False):
        """The state that enters each segment, the one that would enter a further segment, and each
        segment's own final state and decay; None for all if there is nothing to pass on."""
        if not self.joins:
            return None, None, None, None
        B, H, P, N, segments = self.B, self.H, self.P, self.N, self.segments
        ends, decays = device.empty(B, H, segments, P, N), device.empty(B, H, segments)
        every = self.window > 0 or (reverse and self.args[7] is not None
                                    )  # else the outermost segment's is not read
        count = segments - (not every)
        if coarse:  # only the states that enter the scan's segments are needed
            count = (cdiv(self.blocks, self.scan_span) - 1) * self.ratio
        if count:
            launch(fw.carry_state, (B * H, count), x, b, weight, self.through, None, None,
                   ends, decays, self.L, H, H // self.G, self.blocks, segments,
                   int(reverse and not every), self.span, P, N, *self.strides(x, b),
                   REVERSE=reverse, HAS_ENTRY=False, STORE=False, END=True, **self.long)
        entry, last = device.empty(*ends.shape), device.empty(B, H, P, N)
        launch(fw.state_passing, (B * H, cdiv(P * N, BLOCK)), ends, decays, initial, entry, last,
               segments, P * N, self.window, REVERSE=reverse, HAS_INITIAL=initial is not None,
               LAST=every, BLOCK=BLOCK)
        return entry, last, ends, decays

    def backward(self, dy, dfinal=None):
        x, dt, a, b, c, d, bias, initial, seg = self.args
        B, L, H, P, G, N, Q = self.B, self.L, self.H, self.P, self.G, self.N, self.Q
        line = (B, H, self.blocks * Q)
        fixes, dinitial = None, None
        if self.window > 0:
            dentry, dinitial, fixes = self.windowed(dy, dfinal)
        else:
            dentry, dinitial, _, _ = self.joined(dy, c, self.enter, dfinal, True)
            if not self.joins and dfinal is not None:
                dentry = device.zeros(B, H, self.segments, P, N)
                dentry[:, :, -1] = dfinal
            if self.window == 0 and initial is not None:
                dinitial = device.zeros(*initial.shape)
        states, dstates = (device.empty(B, H, self.blocks, P, N, dtype=self.dtype)
                           for _ in range(2))
        launch(fw.carry_state, (B * H, self.segments), x, b, self.weight, self.through, self.entry,
               states, None, None, L, H, H // G, self.blocks, self.segments, 0, self.span, P, N,
               *self.strides(x, b), REVERSE=False, HAS_ENTRY=self.joins, STORE=True, END=False,
               **self.long)
        dx = device.empty(B, L, H, P, dtype=self.dtype)
        along, enters, leaves, margins = (device.empty(*line) for _ in range(4))
        passing, skips = device.empty(*self.through.shape), device.empty(B, H, self.segments)
        launch(bw.grad_x, (B * H, self.segments), x, dy, b, c, self.cb, self.step, self.sums,
               self.rest, self.enter, self.leave, self.through, dentry, states, d, seg, dx, dstates,
               along, passing, skips, L, H, H // G, self.blocks, self.span, P, N,
               *self.strides(x, b, c), HAS_D=d is not None, HAS_SEQ=seg is not None,
               HAS_ENTRY=dentry is not None, REST=self.exact, **self.long)
        slices = max(1, min(H // G, cdiv(device.programs(), self.blocks * B * G)))
        part_b, part_c = (device.empty(slices, B, L, G, N) for _ in range(2))
        part_cb = device.empty(slices, B, G, self.blocks, Q, Q)
        grid = (self.blocks, G * slices, B)
        launch(bw.grad_bc, grid, x, self.weight, dstates, b, part_b, leaves, L, H, G, H // G,
               self.blocks, P, N, *self.strides(x, b), slices, **self.wide)
        launch(bw.grad_bc, grid, dy, self.enter, states, c, part_c, enters, L, H, G, H // G,
               self.blocks, P, N, *self.strides(dy, c), slices, **self.wide)
        narrow = {k: v for k, v in self.wide.items() if k != "BN"}
        launch(bw.grad_cb, grid, x, dy, self.cb, self.step,
               self.sums, self.rest, seg, part_cb, margins, L, H, G, H // G, self.blocks, P,
               *self.strides(x), slices, HAS_SEQ=seg is not None, REST=self.exact, **narrow)
        db, dc = (device.empty(*b.shape, dtype=self.dtype) for _ in range(2))
        launch(bw.grad_bc_sum, (self.blocks, G, B), b, c, part_b, part_c, part_cb, db, dc, L, G,
               self.blocks, N, slices, slices, *self.strides(b, c), **self.shape)
        ddt = device.empty(B, L, H, dtype=self.dtype)
        part_a, part_bias = device.empty(B, self.blocks, H), device.empty(B, self.blocks, H)
        launch(bw.grad_dt, (self.blocks, cdiv(H, HEADS), B), dt, bias, a, self.step, along, enters,
               leaves, margins, passing,
               fixes, ddt, part_a, part_bias, L, H, self.blocks, self.segments, self.span,
               *self.strides(dt), self.dt_min, self.dt_max, HAS_BIAS=bias is not None,
               SOFTPLUS=self.softplus, HAS_FIX=fixes is not None, Q=Q, HEADS=HEADS)
        return dict(x=dx, dt=ddt, a=part_a.sum((0, 1)), b=db, c=dc,
                    d=None if d is None else skips.sum((0, 2)),
                    bias=None if bias is None else part_bias.sum((0, 1)),
                    initial=None if initial is None else dinitial)

    def windowed(self, dy, dfinal):
        """The window strategy: a segment is a chunk, and gradients reach it from the window's
        chunks alone. Sums over pairs of chunks that a third lies between are computed by
        telescoping."""
        x, dt, a, b, c, d, bias, initial, seg = self.args
        dends_entry, dinitial, back, decays = self.joined(dy, c, self.enter, None, True)
        _, _, ends, _ = self.joined(x, b, self.weight, None, False)
        received = (self.entry * back).sum((-1, -2)).double()
        sent = (ends * dends_entry).sum((-1, -2)).double()
        if dfinal is not None:
            # The last chunk passes the final state's gradient on to the chunks in its window.
            last = self.segments - 1
            back = back + 0
            back[:, :, last] += decays[:, :, last, None, None] * dfinal
            received[:, :, last] += (decays[:, :, last, None, None] * dfinal *
                                     self.entry[:, :, last]).sum((-1, -2))
            entry, out = device.empty(*back.shape), device.empty(*dinitial.shape)
            launch(fw.state_passing, (self.B * self.H, cdiv(self.P * self.N, BLOCK)), back, decays,
                   None, entry, out, self.segments, self.P * self.N, self.window, REVERSE=True,
                   HAS_INITIAL=False, LAST=True, BLOCK=BLOCK)
            dends_entry, dinitial = entry, out
            sent = (ends * dends_entry).sum((-1, -2)).double()
        net = received - sent
        crossing = net.flip(2).cumsum(2).flip(2)  # pairs on either side of a chunk's start
        after = crossing * 0
        after[:, :, :-1] = crossing[:, :, 1:]
        fixes = after - sent - decays * (dends_entry * self.entry).sum((-1, -2))
        if dfinal is not None:
            dends_entry[:, :, -1] += dfinal
        return dends_entry, dinitial, fixes.float().contiguous()
