// ssd_triton.cpp: the chunked scan on a GPU: allocates, chooses how the sequence is cut, and
// launches the kernels of ../triton/kernels in the order that ssd_forward.py and ssd_backward.py
// describe.
#include "../ops/device.h"
#include "triton.h"

#include <c10/cuda/CUDAGuard.h>

namespace conquer::cuda {

namespace {

using namespace triton;
using namespace ops;

at::Tensor as_float(const at::Tensor &t) {
  return t.defined() ? t.detach().to(at::kFloat).contiguous() : t;
}

bool starts_aligned(const at::Tensor &t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

// Returns t in `type` as the kernels accept it: the dimensions after the first two are contiguous;
// rows may be apart by a multiple of 16 elements, as in a view of a wider projection.
at::Tensor rows_of(const at::Tensor &t, at::ScalarType type) {
  at::Tensor r = t.detach().to(type);
  int64_t inner = 1;
  bool good = starts_aligned(r);
  for (int64_t i = r.dim() - 1; i >= 2; i--) {
    good = good && (r.size(i) == 1 || r.stride(i) == inner);
    inner *= r.size(i);
  }
  for (int64_t i = 0; i < 2 && i < r.dim(); i++)
    good = good && (r.size(i) == 1 || (r.stride(i) > 0 && r.stride(i) % 16 == 0));
  return good ? r : r.contiguous().clone(at::MemoryFormat::Contiguous);
}

// One scan: its inputs, shapes, and how the sequence is cut.
struct Plan {
  ScanInput in;
  ScanOptions options;
  at::Tensor x, dt, a, b, c, d, bias, initial, seg;
  int64_t batch, length, heads, p, groups, n, per_group;
  // The scan works on few long segments of scan_span blocks, all other kernels on their `ratio`
  // pieces of span blocks.
  int64_t block, blocks, span, segments, ratio = 1, scan_span, reset, sms, programs;
  bool exact, has_entry, keep, hopper;
  keys::Scan variant;

  // keep: a backward pass follows, which cuts the sequence the same way.
  Plan(const ScanInput &in, const ScanOptions &o, bool keep) : in(in), options(o), keep(keep) {
    auto t = in.x.scalar_type();
    exact = t == at::kFloat;
    x = rows_of(in.x, t);
    b = rows_of(in.b, t);
    c = rows_of(in.c, t);
    dt = in.dt.detach().to(t);
    if (dt.stride(2) != 1 || !starts_aligned(dt))
      dt = dt.clone(at::MemoryFormat::Contiguous);
    batch = x.size(0), length = x.size(1), heads = x.size(2), p = x.size(3), groups = b.size(2),
    n = b.size(3);
    per_group = heads / groups;
    a = as_float(in.a);
    auto floats = a.options();
    d = in.d.defined() ? as_float(in.d) : at::zeros({heads}, floats);
    bias = in.dt_bias.defined() ? as_float(in.dt_bias) : at::zeros({heads}, floats);
    initial = as_float(in.initial);
    seg = in.segment;
    block = keys::scan_block(dtype_name(t), o.window, o.chunk_size);
    // Chunks smaller than a block become sequences of their own.
    if (o.window == 0 && o.chunk_size < block) {
      at::Tensor own = at::arange(length, floats.dtype(at::kInt))
                           .floor_divide(o.chunk_size)
                           .to(at::kInt)
                           .unsqueeze(0);
      seg = (seg.defined() ? seg + own * 2 : own.expand({batch, length})).contiguous();
      seg = seg.to(at::kInt);
    }
    blocks = ceil_div(length, block);
    sms = sm_count();
    bool mask = power_of_two(p) != p || power_of_two(n) != n || x.stride(1) % 16 ||
                x.stride(0) % 16 || b.stride(1) % 16 || b.stride(0) % 16 || c.stride(1) % 16 ||
                c.stride(0) % 16;
    variant = {dtype_name(t), block, p, n, mask};
    // One program of scan_hopper fills an SM; an SM holds two programs of the other kernels.
    hopper = variant.fits_hopper() && has(variant.scan_hopper(seg.defined(), true));
    programs = (hopper && !keep ? 1 : 2) * sms;
    if (o.window > 0) {
      span = o.chunk_size / block;
    } else {
      span = ceil_div(blocks, std::max<int64_t>(1, std::min(blocks, programs / (batch * heads))));
      span = std::max(span, std::min(blocks, tuning::ssd_SHORTEST));
      int64_t each = std::max<int64_t>(1, o.chunk_size / block);
      if (o.window == 0)
        span = ceil_div(span, each) * each;
    }
    scan_span = span;
    if (o.window < 0 && span < blocks) {
      ratio = std::min<int64_t>(span, tuning::ssd_RATIO);
      span = ceil_div(span, ratio);
      scan_span = span * ratio;
    }
    segments = ceil_div(blocks, span);
    reset = o.window == 0 ? std::max<int64_t>(1, o.chunk_size / block) : 0;
    has_entry = o.window > 0 || (o.window < 0 && (segments > 1 || initial.defined()));
  }

  at::Tensor floats(at::IntArrayRef size) const { return at::empty(size, a.options()); }
  at::Tensor line() const { return floats({batch, heads, blocks * block}); }
  at::Tensor like_x(at::IntArrayRef size) const { return at::empty(size, x.options()); }
  dim3 head_grid() const { return grid(blocks, ceil_div(heads, tuning::prepare_HEADS), batch); }
  dim3 segment_grid(int64_t segments) const { return grid(batch * heads, segments); }
};

struct Prepared {
  at::Tensor step, sums, columns, rest, rest_columns, enter, leave, weight, through, cb, entry;
};

void strides(Arguments &args, std::initializer_list<const at::Tensor *> of) {
  for (const at::Tensor *t : of)
    args << batch_stride(*t) << t->stride(1);
}

// Computes the segments' own final states and decays from x and b (in reverse: dy and c). every:
// also those of the outermost segment, which no segment follows. coarse: only those that the scan's
// segments need.
void segment_ends(const Plan &s, const Prepared &w, const at::Tensor &x, const at::Tensor &b,
                  const at::Tensor &weight, bool reverse, bool every, bool coarse, at::Tensor &ends,
                  at::Tensor &decays) {
  ends = s.floats({s.batch, s.heads, s.segments, s.p, s.n});
  decays = s.floats({s.batch, s.heads, s.segments});
  int64_t count = s.segments - (every ? 0 : 1), skip = reverse && !every ? 1 : 0;
  if (coarse)
    count = (ceil_div(s.blocks, s.scan_span) - 1) * s.ratio;
  Arguments args;
  args << ptr(x) << ptr(b) << ptr(weight) << ptr(w.through) << ptr({}) << ptr({}) << ptr(ends)
       << ptr(decays) << s.length << s.heads << s.per_group << s.blocks << s.segments << skip
       << s.span << s.p << s.n;
  strides(args, {&x, &b});
  launch(s.variant.carry_state(reverse, false, false), s.segment_grid(count), args);
}

void pass_states(const Plan &s, const at::Tensor &ends, const at::Tensor &decays,
                 const at::Tensor &start, bool reverse, at::Tensor &entry, at::Tensor &last) {
  entry = at::empty_like(ends);
  last = s.floats({s.batch, s.heads, s.p, s.n});
  Arguments args;
  args << ptr(ends) << ptr(decays) << ptr(start) << ptr(entry) << ptr(last) << s.segments
       << s.p * s.n << s.options.window;
  launch(keys::state_passing(reverse, start.defined()),
         grid(s.batch * s.heads, ceil_div(s.p * s.n, tuning::state_passing_BLOCK)), args);
}

Prepared prepare(const Plan &s) {
  Prepared w;
  w.sums = s.line(), w.columns = s.line(), w.enter = s.line(), w.weight = s.line();
  if (s.keep)
    w.step = s.line(), w.leave = s.line();
  w.rest = s.exact ? s.line() : w.sums;
  w.rest_columns = s.exact ? s.line() : w.sums;
  w.through = s.floats({s.batch, s.heads, s.blocks});
  Arguments args;
  args << ptr(s.dt) << ptr(s.bias) << ptr(s.a) << ptr(s.seg) << ptr(w.step) << ptr(w.sums)
       << ptr(w.columns) << ptr(w.rest) << ptr(w.rest_columns) << ptr(w.enter) << ptr(w.leave)
       << ptr(w.weight) << ptr(w.through) << s.length << s.heads << s.blocks << batch_stride(s.dt)
       << s.dt.stride(1) << s.reset << static_cast<float>(s.options.dt_min)
       << static_cast<float>(s.options.dt_max);
  launch(s.variant.prepare(s.seg.defined(), s.options.dt_softplus, s.keep), s.head_grid(), args);
  w.cb = s.like_x({s.batch, s.groups, s.blocks, s.block, s.block});
  Arguments more;
  more << ptr(s.b) << ptr(s.c) << ptr(w.cb) << s.length << s.groups << s.blocks << s.n;
  strides(more, {&s.b, &s.c});
  launch(s.variant.cb_gemm(), grid(s.blocks, s.groups, s.batch), more);
  if (s.has_entry) {
    at::Tensor ends, decays, last;
    segment_ends(s, w, s.x, s.b, w.weight, false, s.options.window > 0,
                 !s.keep && s.options.window < 0, ends, decays);
    pass_states(s, ends, decays, s.initial, false, w.entry, last);
  }
  return w;
}

void forward(const ScanInput &in, const ScanOptions &o, at::Tensor &y, at::Tensor &final_state,
             std::vector<at::Tensor> &saved) {
  c10::cuda::CUDAGuard guard(in.x.device());
  bool keep = false; // for a backward pass
  for (const at::Tensor *t : {&in.x, &in.dt, &in.a, &in.b, &in.c, &in.d, &in.dt_bias, &in.initial})
    keep = keep || (t->defined() && t->requires_grad());
  Plan s(in, o, keep);
  Prepared w = prepare(s);
  y = s.like_x({s.batch, s.length, s.heads, s.p});
  final_state = s.floats({s.batch, s.heads, s.p, s.n});
  int64_t segments = ceil_div(s.blocks, s.scan_span);
  Arguments args;
  if (s.hopper) {
    auto boxes = [&](const at::Tensor &t) {
      return Boxes{t,
                   {s.batch, s.length, t.size(2) * t.size(3)},
                   {s.batch > 1 ? t.stride(0) : s.length * t.stride(1), t.stride(1)},
                   s.block};
    };
    int64_t rows = s.batch * s.heads, items = rows * segments;
    args << boxes(s.x) << boxes(s.b) << boxes(s.c) << boxes(y)
         << Boxes{w.cb,
                  {s.batch * s.groups, s.blocks * s.block, s.block},
                  {s.blocks * s.block * s.block, s.block},
                  s.block}
         << ptr(w.sums) << ptr(w.columns) << ptr(w.enter) << ptr(w.weight) << ptr(w.entry)
         << ptr(s.d) << ptr(s.seg) << ptr(final_state) << s.length << s.heads << s.per_group
         << s.blocks << rows << s.scan_span << segments << s.segments << s.ratio;
    // The fewest programs for the same number of rounds: items of one group then run side by side.
    int64_t programs = ceil_div(items, ceil_div(items, s.sms));
    launch(s.variant.scan_hopper(s.seg.defined(), s.has_entry), grid(programs), args);
  } else {
    args << ptr(s.x) << ptr(s.b) << ptr(s.c) << ptr(w.cb) << ptr(w.sums) << ptr(w.columns)
         << ptr(w.rest) << ptr(w.rest_columns) << ptr(w.enter) << ptr(w.weight) << ptr(w.through)
         << ptr(w.entry) << ptr(s.d) << ptr(s.seg) << ptr(y) << ptr(final_state) << s.length
         << s.heads << s.per_group << s.blocks << s.scan_span << s.segments << s.ratio << s.p
         << s.n;
    strides(args, {&s.x, &s.b, &s.c});
    launch(s.variant.scan(s.seg.defined(), s.has_entry), s.segment_grid(segments), args);
  }
  saved = {w.step, w.sums, {}, w.rest, {}, w.enter, w.leave, w.weight, w.through, w.cb, w.entry};
}

// The window strategy: gradients reach a chunk from the chunks of its window alone. The sums over
// pairs of chunks that a third lies between telescope; `fixes` corrects grad_x's sums for pairs too
// far apart.
void window_back(const Plan &s, const Prepared &w, const at::Tensor &dy, const at::Tensor &dfinal,
                 at::Tensor &dentry, at::Tensor &dinitial, at::Tensor &fixes) {
  at::Tensor back, decays, ends, unused;
  segment_ends(s, w, dy, s.c, w.enter, true, true, false, back, decays);
  segment_ends(s, w, s.x, s.b, w.weight, false, true, false, ends, unused);
  if (dfinal.defined())
    back.select(2, s.segments - 1)
        .add_(decays.select(2, s.segments - 1).unsqueeze(-1).unsqueeze(-1) * dfinal);
  pass_states(s, back, decays, {}, true, dentry, dinitial);
  auto inner = [](const at::Tensor &u, const at::Tensor &v) {
    return (u * v).sum(at::IntArrayRef{-1, -2}).to(at::kDouble);
  };
  at::Tensor sent = inner(ends, dentry), net = inner(w.entry, back) - sent;
  at::Tensor crossing = net.flip(2).cumsum(2).flip(2), after = at::zeros_like(crossing);
  after.slice(2, 0, s.segments - 1).copy_(crossing.slice(2, 1));
  fixes = (after - sent - decays * inner(dentry, w.entry)).to(at::kFloat).contiguous();
  if (dfinal.defined())
    dentry.select(2, s.segments - 1).add_(dfinal);
}

void backward(const ScanInput &in, const ScanOptions &o, const std::vector<at::Tensor> &k,
              const at::Tensor &dy_, const at::Tensor &dfinal_, ScanGradients &g) {
  c10::cuda::CUDAGuard guard(in.x.device());
  Plan s(in, o, true);
  Prepared w{k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9], k[10]};
  at::Tensor dy = rows_of(dy_.contiguous(), in.x.scalar_type()), dfinal = as_float(dfinal_);
  if (!dy.is_contiguous())
    dy = dy.contiguous();
  at::Tensor dentry, dinitial, fixes;
  if (o.window > 0) {
    window_back(s, w, dy, dfinal, dentry, dinitial, fixes);
  } else if (s.has_entry) {
    at::Tensor ends, decays;
    segment_ends(s, w, dy, s.c, w.enter, true, s.initial.defined(), false, ends, decays);
    pass_states(s, ends, decays, dfinal, true, dentry, dinitial);
  } else if (dfinal.defined()) {
    dentry = at::zeros({s.batch, s.heads, s.segments, s.p, s.n}, s.a.options());
    dentry.select(2, s.segments - 1).copy_(dfinal);
  }

  std::vector<int64_t> state_size = {s.batch, s.heads, s.blocks, s.p, s.n};
  at::Tensor states = s.like_x(state_size), dstates = s.like_x(state_size),
             dx = s.like_x({s.batch, s.length, s.heads, s.p});
  at::Tensor along = s.line(), enters = s.line(), leaves = s.line(), margins = s.line();
  at::Tensor passing = at::empty_like(w.through), skips = s.floats({s.batch, s.heads, s.segments});
  {
    Arguments args;
    args << ptr(s.x) << ptr(s.b) << ptr(w.weight) << ptr(w.through) << ptr(w.entry) << ptr(states)
         << ptr({}) << ptr({}) << s.length << s.heads << s.per_group << s.blocks << s.segments << 0
         << s.span << s.p << s.n;
    strides(args, {&s.x, &s.b});
    launch(s.variant.carry_state(false, s.has_entry, true), s.segment_grid(s.segments), args);
  }
  {
    Arguments args;
    args << ptr(s.x) << ptr(dy) << ptr(s.b) << ptr(s.c) << ptr(w.cb) << ptr(w.step) << ptr(w.sums)
         << ptr(w.rest) << ptr(w.enter) << ptr(w.leave) << ptr(w.through) << ptr(dentry)
         << ptr(states) << ptr(s.d) << ptr(s.seg) << ptr(dx) << ptr(dstates) << ptr(along)
         << ptr(passing) << ptr(skips) << s.length << s.heads << s.per_group << s.blocks << s.span
         << s.p << s.n;
    strides(args, {&s.x, &s.b, &s.c});
    launch(s.variant.grad_x(s.seg.defined(), dentry.defined()), s.segment_grid(s.segments), args);
  }
  // Enough slices of a group's heads to fill the GPU.
  int64_t slices = std::max<int64_t>(
      1, std::min(s.per_group, ceil_div(2 * s.programs, s.blocks * s.batch * s.groups)));
  at::Tensor part_b = s.floats({slices, s.batch, s.length, s.groups, s.n}),
             part_c = at::empty_like(part_b);
  at::Tensor part_cb = s.floats({slices, s.batch, s.groups, s.blocks, s.block, s.block});
  dim3 slice_grid = grid(s.blocks, s.groups * slices, s.batch);
  auto through_states = [&](const at::Tensor &x, const at::Tensor &weight, const at::Tensor &states,
                            const at::Tensor &b, const at::Tensor &part, const at::Tensor &dots) {
    Arguments args;
    args << ptr(x) << ptr(weight) << ptr(states) << ptr(b) << ptr(part) << ptr(dots) << s.length
         << s.heads << s.groups << s.per_group << s.blocks << s.p << s.n;
    strides(args, {&x, &b});
    args << slices;
    launch(s.variant.grad_bc(), slice_grid, args);
  };
  through_states(s.x, w.weight, dstates, s.b, part_b, leaves);
  through_states(dy, w.enter, states, s.c, part_c, enters);
  {
    Arguments args;
    args << ptr(s.x) << ptr(dy) << ptr(w.cb) << ptr(w.step) << ptr(w.sums) << ptr(w.rest)
         << ptr(s.seg) << ptr(part_cb) << ptr(margins) << s.length << s.heads << s.groups
         << s.per_group << s.blocks << s.p;
    strides(args, {&s.x});
    args << slices;
    launch(s.variant.grad_cb(s.seg.defined()), slice_grid, args);
  }
  g.b = s.like_x({s.batch, s.length, s.groups, s.n});
  g.c = at::empty_like(g.b);
  {
    Arguments args;
    args << ptr(s.b) << ptr(s.c) << ptr(part_b) << ptr(part_c) << ptr(part_cb) << ptr(g.b)
         << ptr(g.c) << s.length << s.groups << s.blocks << s.n << slices << slices;
    strides(args, {&s.b, &s.c});
    launch(s.variant.grad_bc_sum(), grid(s.blocks, s.groups, s.batch), args);
  }
  at::Tensor ddt = s.like_x({s.batch, s.length, s.heads});
  at::Tensor part_a = s.floats({s.batch, s.blocks, s.heads}), part_bias = at::empty_like(part_a);
  {
    Arguments args;
    args << ptr(s.dt) << ptr(s.bias) << ptr(s.a) << ptr(w.step) << ptr(along) << ptr(enters)
         << ptr(leaves) << ptr(margins) << ptr(passing) << ptr(fixes) << ptr(ddt) << ptr(part_a)
         << ptr(part_bias) << s.length << s.heads << s.blocks << s.segments << s.span
         << batch_stride(s.dt) << s.dt.stride(1) << static_cast<float>(o.dt_min)
         << static_cast<float>(o.dt_max);
    launch(s.variant.grad_dt(o.dt_softplus, fixes.defined()), s.head_grid(), args);
  }
  g.x = dx;
  g.dt = ddt.to(in.dt.scalar_type());
  g.b = g.b.to(in.b.scalar_type());
  g.c = g.c.to(in.c.scalar_type());
  g.a = part_a.sum(at::IntArrayRef{0, 1}).to(in.a.scalar_type());
  if (in.d.defined())
    g.d = skips.sum(at::IntArrayRef{0, 2}).to(in.d.scalar_type());
  if (in.dt_bias.defined())
    g.dt_bias = part_bias.sum(at::IntArrayRef{0, 1}).to(in.dt_bias.scalar_type());
  if (in.initial.defined())
    g.initial = o.window == 0 ? at::zeros_like(in.initial) : dinitial.to(in.initial.scalar_type());
}

} // namespace

void add_scan(Device &d) {
  d.ssd_scan = forward;
  d.ssd_scan_grad = backward;
}

} // namespace conquer::cuda
