// ssd_cpu.cpp: the CPU face of the state-space operations: converts to float32, splits the work over threads and calls
// the kernels of ssd_head.h and ssd_rows.h that this processor can run.
#include "ssd_prelude.h"

#include <ATen/Parallel.h>

namespace conquer::ssd {

const Kernels &kernels() {
  static const Kernels &best = [&]() -> const Kernels & {
    if (const Kernels *k = kernels_avx512())
      return *k;
    if (const Kernels *k = kernels_avx2())
      return *k;
    return kernels_generic();
  }();
  return best;
}

namespace {

at::Tensor as_float(const at::Tensor &t) { return t.defined() ? t.detach().to(at::kFloat).contiguous() : t; }
const float *data_of(const at::Tensor &t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }
float *out_of(const at::Tensor &t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; }

// dt after bias, softplus and clamp, as float32.
at::Tensor processed_dt(const at::Tensor &dt, const at::Tensor &bias, const ScanOptions &o) {
  at::Tensor v = as_float(dt);
  if (bias.defined())
    v = v + as_float(bias);
  if (o.dt_softplus)
    v = at::softplus(v);
  return v.clamp(o.dt_min, o.dt_max);
}

// The tensors a Scan points to, and the Scan.
struct Prepared {
  at::Tensor x, dt, a, b, c, d, initial, segment, cb;
  Scan scan;

  Prepared(const ScanInput &in, const ScanOptions &o) {
    x = as_float(in.x);
    dt = processed_dt(in.dt, in.dt_bias, o).transpose(1, 2).contiguous();
    a = as_float(in.a);
    b = as_float(in.b);
    c = as_float(in.c);
    d = as_float(in.d);
    initial = as_float(in.initial);
    segment = in.segment;
    Scan &s = scan;
    s.batch = x.size(0), s.length = x.size(1), s.heads = x.size(2), s.head_dim = x.size(3);
    s.groups = b.size(2), s.state = b.size(3);
    s.window = o.window;
    s.block = o.window < 0 ? 64 : std::min<int64_t>(64, o.chunk_size);
    while (s.block > 16 && s.block >= 2 * s.length)
      s.block /= 2;
    s.blocks = (s.length + s.block - 1) / s.block;
    s.chunk_blocks = o.window < 0 ? s.blocks : o.chunk_size / s.block;
    cb = at::empty({s.batch, s.groups, s.blocks, s.block, s.block}, at::kFloat);
    s.x = data_of(x), s.dt = data_of(dt), s.a = data_of(a), s.b = data_of(b), s.c = data_of(c), s.d = data_of(d);
    s.cb = data_of(cb), s.initial = data_of(initial);
    s.segment = segment.defined() ? segment.const_data_ptr<int32_t>() : nullptr;
    float *to = out_of(cb);
    // Stretches of blocks, so that one group still occupies every thread.
    int64_t stretch = 8, parts = (s.blocks + stretch - 1) / stretch;
    at::parallel_for(0, s.batch * s.groups * parts, 1, [&](int64_t from, int64_t until) {
      for (int64_t i = from; i < until; i++) {
        int64_t k = i % parts * stretch, bg = i / parts, row = bg / s.groups;
        Scan part = s;
        part.length = std::min(stretch * s.block, s.length - k * s.block);
        part.blocks = std::min(stretch, s.blocks - k);
        int64_t shift = (row * (s.length - part.length) + k * s.block) * s.groups * s.state;
        part.b += shift;
        part.c += shift;
        kernels().cb(part, row, bg % s.groups, to + (bg * s.blocks + k) * s.block * s.block);
      }
    });
  }
};

void forward(const ScanInput &in, const ScanOptions &o, at::Tensor &y, at::Tensor &final_state,
             std::vector<at::Tensor> &) {
  Prepared p(in, o);
  const Scan &s = p.scan;
  at::Tensor out = at::empty_like(p.x);
  final_state = at::empty({s.batch, s.heads, s.head_dim, s.state}, at::kFloat);
  ScanOut to{out_of(out), out_of(final_state)};
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++)
      kernels().forward(s, to, i / s.heads, i % s.heads);
  });
  y = out.to(in.x.scalar_type());
}

void backward(const ScanInput &in, const ScanOptions &o, const std::vector<at::Tensor> &, const at::Tensor &dy,
              const at::Tensor &dfinal, ScanGradients &grads) {
  Prepared p(in, o);
  const Scan &s = p.scan;
  at::Tensor dout = as_float(dy), dend = as_float(dfinal);
  at::Tensor dx = at::empty_like(p.x), ddt = at::empty_like(p.dt), db = at::empty_like(p.b), dc = at::empty_like(p.c);
  at::Tensor da = at::empty({s.batch, s.heads}, at::kFloat), dd = at::empty_like(da), dinitial;
  if (p.initial.defined())
    dinitial = at::empty_like(p.initial);
  ScanGrad g{data_of(dout), data_of(dend), out_of(dx), out_of(ddt), out_of(da), out_of(dd), out_of(dinitial)};

  // The heads of a group share dB and dC: each slice of them sums into arrays of its own.
  int64_t per_group = s.heads / s.groups, bg = s.batch * s.groups, np = pad16(s.state);
  int64_t slices = std::min<int64_t>(per_group, (at::get_num_threads() + bg - 1) / bg);
  at::Tensor part_db = at::zeros({bg, slices, s.length, np}, at::kFloat), part_dc = at::zeros_like(part_db);
  at::Tensor part_cb = at::zeros({bg, slices, s.blocks, s.block, s.block}, at::kFloat);
  std::vector<SliceGrad> parts(bg * slices);
  for (int64_t i = 0; i < bg * slices; i++)
    parts[i] = {out_of(part_db) + i * s.length * np, out_of(part_dc) + i * s.length * np,
                out_of(part_cb) + i * s.blocks * s.block * s.block};
  at::parallel_for(0, bg * slices, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++) {
      int64_t slice = i % slices, group = i / slices % s.groups, row = i / slices / s.groups;
      for (int64_t h = per_group * slice / slices; h < per_group * (slice + 1) / slices; h++)
        kernels().backward(s, g, parts[i], row, group * per_group + h);
    }
  });
  at::parallel_for(0, bg, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++) {
      int64_t row = i / s.groups, group = i % s.groups, at = (row * s.length * s.groups + group) * s.state;
      kernels().finish(s, parts.data() + i * slices, static_cast<int>(slices), row, group, out_of(db) + at,
                       out_of(dc) + at, s.groups * s.state);
    }
  });

  grads.x = dx.to(in.x.scalar_type());
  grads.b = db.to(in.b.scalar_type());
  grads.c = dc.to(in.c.scalar_type());
  grads.a = da.sum(0).to(in.a.scalar_type());
  if (in.d.defined())
    grads.d = dd.sum(0).to(in.d.scalar_type());
  if (in.initial.defined())
    grads.initial = dinitial.to(in.initial.scalar_type());
  // Back through clamp, softplus and bias.
  at::Tensor raw = as_float(in.dt);
  if (in.dt_bias.defined())
    raw = raw + as_float(in.dt_bias);
  at::Tensor soft = o.dt_softplus ? at::softplus(raw) : raw, d = ddt.transpose(1, 2);
  d = at::where(soft.ge(o.dt_min).logical_and(soft.le(o.dt_max)), d, at::zeros({}, at::kFloat));
  if (o.dt_softplus)
    d = d * at::sigmoid(raw);
  grads.dt = d.to(in.dt.scalar_type()).contiguous();
  if (in.dt_bias.defined())
    grads.dt_bias = d.sum(at::IntArrayRef{0, 1}).to(in.dt_bias.scalar_type());
}

void step(const at::Tensor &state, const ScanInput &in, const at::Tensor &z, const ScanOptions &o, at::Tensor &y) {
  at::Tensor x = as_float(in.x), dt = processed_dt(in.dt, in.dt_bias, o).contiguous(), a = as_float(in.a),
             b = as_float(in.b), c = as_float(in.c), d = as_float(in.d);
  if (o.a_log)
    a = a.exp().neg_();
  bool direct = state.scalar_type() == at::kFloat && state.is_contiguous();
  at::Tensor h = direct ? state : state.to(at::kFloat).contiguous();
  int64_t heads = x.size(1), p = x.size(2), groups = b.size(1), n = b.size(2);
  at::Tensor out = at::empty_like(x);
  const float *xs = data_of(x), *dts = data_of(dt), *as = data_of(a), *bs = data_of(b), *cs = data_of(c),
              *ds = data_of(d);
  float *hs = out_of(h), *ys = out_of(out);
  at::parallel_for(0, x.size(0) * heads, std::max<int64_t>(1, 32768 / (p * n)), [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++) {
      int64_t head = i % heads, g = i / heads * groups + head / (heads / groups);
      kernels().step(p, n, std::exp(dts[i] * as[head]), dts[i], ds ? ds[head] : 0, xs + i * p, bs + g * n, cs + g * n,
                     hs + i * p * n, ys + i * p);
    }
  });
  if (!direct)
    state.copy_(h);
  if (z.defined())
    out.mul_(at::silu(as_float(z)));
  y = out.to(in.x.scalar_type());
}

// Rows a thread takes at a time: enough that starting it is small beside them.
int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(dim, 1)); }

struct ConvArguments {
  at::Tensor x, weight, bias, initial, segment;
  int64_t batch, length, dim, width;
  ConvArguments(const at::Tensor &x_, const at::Tensor &w_, const at::Tensor &b_, const at::Tensor &i_,
                const at::Tensor &s_)
      : x(as_float(x_)), weight(as_float(w_).t().contiguous()), bias(as_float(b_)), initial(as_float(i_)), segment(s_),
        batch(x.size(0)), length(x.size(1)), dim(x.size(2)), width(weight.size(0)) {}
  void run(bool silu, float *y, float *pre) const {
    const float *xs = data_of(x), *h = data_of(initial);
    const int32_t *seg = segment.defined() ? segment.const_data_ptr<int32_t>() : nullptr;
    at::parallel_for(0, batch * length, row_grain(dim), [&](int64_t from, int64_t until) {
      while (from < until) { // stretches within one row of the batch
        int64_t row = from / length, t0 = from % length, t1 = std::min(length, t0 + until - from), at = row * length;
        kernels().conv(t0, t1, dim, width, xs + at * dim, data_of(weight), data_of(bias),
                       h ? h + row * (width - 1) * dim : nullptr, seg ? seg + at : nullptr, silu, y + at * dim,
                       pre ? pre + at * dim : nullptr);
        from += t1 - t0;
      }
    });
  }
};

at::Tensor conv(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, const at::Tensor &initial,
                const at::Tensor &segment, bool silu) {
  ConvArguments a(x, weight, bias, initial, segment);
  at::Tensor y = at::empty_like(a.x);
  a.run(silu, out_of(y), nullptr);
  return y.to(x.scalar_type());
}

void conv_grad(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, const at::Tensor &initial,
               const at::Tensor &segment, bool silu, const at::Tensor &dy_, at::Tensor &dx, at::Tensor &dweight,
               at::Tensor &dbias, at::Tensor &dinitial) {
  ConvArguments a(x, weight, bias, initial, segment);
  int64_t history = a.width - 1, length = a.length;
  at::Tensor d = as_float(dy_);
  if (silu) {
    at::Tensor y = at::empty_like(a.x), pre = at::empty_like(a.x);
    a.run(false, out_of(pre), nullptr);
    const float *ps = data_of(pre), *dys = data_of(d);
    float *to = out_of(y);
    at::parallel_for(0, y.numel(), 16384, [&](int64_t from, int64_t until) {
      kernels().silu_grad(until - from, ps + from, dys + from, to + from);
    });
    d = y;
  }
  // Over [history, x] the convolution is width shifted products; its gradients are the same shifts the other way.
  at::Tensor before = a.initial.defined() ? a.initial : at::zeros({a.batch, history, a.dim}, at::kFloat);
  at::Tensor padded = at::cat({before, a.x}, 1), dpadded = at::zeros_like(padded), dw = at::empty_like(a.weight), seg;
  if (segment.defined())
    seg = at::cat({segment.slice(1, 0, 1).expand({a.batch, history}), segment}, 1);
  for (int64_t k = 0; k < a.width; k++) {
    at::Tensor use = d;
    if (seg.defined())
      use = d * seg.slice(1, k, k + length).eq(segment).unsqueeze(2);
    dw[k].copy_((use * padded.slice(1, k, k + length)).sum(at::IntArrayRef{0, 1}));
    dpadded.slice(1, k, k + length).addcmul_(use, a.weight[k]);
  }
  dx = dpadded.slice(1, history).to(x.scalar_type()).contiguous();
  dweight = dw.t().contiguous().to(weight.scalar_type());
  if (bias.defined())
    dbias = d.sum(at::IntArrayRef{0, 1}).to(bias.scalar_type());
  if (initial.defined())
    dinitial = dpadded.slice(1, 0, history).to(initial.scalar_type()).contiguous();
}

at::Tensor conv_step(const at::Tensor &state, const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                     bool silu) {
  at::Tensor y = conv(x.unsqueeze(1), weight, bias, state, {}, silu).squeeze(1);
  int64_t history = state.size(1);
  if (history > 1)
    state.slice(1, 0, history - 1).copy_(state.slice(1, 1).clone());
  state.select(1, history - 1).copy_(x);
  return y;
}

at::Tensor norm(const at::Tensor &x, const at::Tensor &z, const at::Tensor &weight, double eps, int64_t group) {
  at::Tensor xs = as_float(x), zs = as_float(z), w = as_float(weight), y = at::empty_like(xs);
  int64_t dim = xs.size(-1);
  const float *xp = data_of(xs), *zp = data_of(zs), *wp = data_of(w);
  float *yp = out_of(y);
  at::parallel_for(0, xs.numel() / dim, row_grain(dim), [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++)
      kernels().norm(dim, group, static_cast<float>(eps), xp + i * dim, zp ? zp + i * dim : nullptr, wp, yp + i * dim);
  });
  return y.to(x.scalar_type());
}

void norm_grad(const at::Tensor &x, const at::Tensor &z, const at::Tensor &weight, double eps, int64_t group,
               const at::Tensor &dy, at::Tensor &dx, at::Tensor &dz, at::Tensor &dweight) {
  at::Tensor xs = as_float(x), zs = as_float(z), w = as_float(weight), d = as_float(dy);
  int64_t dim = xs.size(-1), rows = xs.numel() / dim;
  at::Tensor gx = at::empty_like(xs), gz = zs.defined() ? at::empty_like(xs) : zs;
  int64_t parts = std::min<int64_t>(rows, at::get_num_threads());
  at::Tensor gw = at::zeros({parts, dim}, at::kFloat);
  const float *xp = data_of(xs), *zp = data_of(zs), *wp = data_of(w), *dp = data_of(d);
  float *gxp = out_of(gx), *gzp = out_of(gz), *gwp = out_of(gw);
  at::parallel_for(0, parts, 1, [&](int64_t from, int64_t until) {
    for (int64_t part = from; part < until; part++)
      for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; i++)
        kernels().norm_grad(dim, group, static_cast<float>(eps), xp + i * dim, zp ? zp + i * dim : nullptr, wp,
                            dp + i * dim, gxp + i * dim, gzp ? gzp + i * dim : nullptr, gwp + part * dim);
  });
  dx = gx.to(x.scalar_type());
  if (z.defined())
    dz = gz.to(z.scalar_type());
  dweight = gw.sum(0).to(weight.scalar_type());
}

} // namespace

const Device &cpu_device() {
  static const Device device = {forward, backward, step, conv, conv_grad, conv_step, norm, norm_grad};
  return device;
}

} // namespace conquer::ssd
