// ssd_scan.cpp: the chunked scan, heads shared out among the threads.
#include "state_space.h"

namespace conquer::cpu {

namespace {

// A Scan and the tensors that it points to.
struct Prepared {
  at::Tensor x, dt, a, b, c, d, initial, segment, cb;
  Scan scan;

  Prepared(const ops::ScanInput &in, const ops::ScanOptions &o) {
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
    s.x = data_of<float>(x), s.dt = data_of<float>(dt), s.a = data_of<float>(a),
    s.b = data_of<float>(b), s.c = data_of<float>(c), s.d = data_of<float>(d);
    s.cb = data_of<float>(cb), s.initial = data_of<float>(initial);
    s.segment = segment.defined() ? segment.const_data_ptr<int32_t>() : nullptr;
    float *to = mutable_data_of<float>(cb);
    // Groups of blocks are separate tasks, so that even one group keeps all threads busy.
    int64_t run = 8, parts = (s.blocks + run - 1) / run; // blocks in a task
    parallel_for(s.batch * s.groups * parts, 1, [&](int64_t from, int64_t until) {
      for (int64_t i = from; i < until; i++) {
        int64_t k = i % parts * run, bg = i / parts, row = bg / s.groups;
        Scan part = s;
        part.length = std::min(run * s.block, s.length - k * s.block);
        part.blocks = std::min(run, s.blocks - k);
        int64_t shift = (row * (s.length - part.length) + k * s.block) * s.groups * s.state;
        part.b += shift;
        part.c += shift;
        state_space_kernels().cb(part, row, bg % s.groups,
                                 to + (bg * s.blocks + k) * s.block * s.block);
      }
    });
  }
};

} // namespace

void ssd_scan(const ops::ScanInput &in, const ops::ScanOptions &o, at::Tensor &y,
              at::Tensor &final_state, std::vector<at::Tensor> &) {
  Prepared p(in, o);
  const Scan &s = p.scan;
  at::Tensor out = at::empty_like(p.x);
  final_state = at::empty({s.batch, s.heads, s.head_dim, s.state}, at::kFloat);
  ScanOut to{mutable_data_of<float>(out), mutable_data_of<float>(final_state)};
  parallel_for(s.batch * s.heads, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++)
      state_space_kernels().forward(s, to, i / s.heads, i % s.heads);
  });
  y = out.to(in.x.scalar_type());
}

void ssd_scan_grad(const ops::ScanInput &in, const ops::ScanOptions &o,
                   const std::vector<at::Tensor> &, const at::Tensor &dy, const at::Tensor &dfinal,
                   ops::ScanGradients &grads) {
  Prepared p(in, o);
  const Scan &s = p.scan;
  at::Tensor dout = as_float(dy), dend = as_float(dfinal);
  at::Tensor dx = at::empty_like(p.x), ddt = at::empty_like(p.dt), db = at::empty_like(p.b),
             dc = at::empty_like(p.c);
  at::Tensor da = at::empty({s.batch, s.heads}, at::kFloat), dd = at::empty_like(da), dinitial;
  if (p.initial.defined())
    dinitial = at::empty_like(p.initial);
  ScanGrad g{data_of<float>(dout),
             data_of<float>(dend),
             mutable_data_of<float>(dx),
             mutable_data_of<float>(ddt),
             mutable_data_of<float>(da),
             mutable_data_of<float>(dd),
             mutable_data_of<float>(dinitial)};

  // The heads of a group share dB and dC. Each slice of the heads has arrays of its own for them.
  int64_t per_group = s.heads / s.groups, bg = s.batch * s.groups, np = pad16(s.state);
  int64_t slices = std::min<int64_t>(per_group, (at::get_num_threads() + bg - 1) / bg);
  at::Tensor part_db = at::zeros({bg, slices, s.length, np}, at::kFloat),
             part_dc = at::zeros_like(part_db);
  at::Tensor part_cb = at::zeros({bg, slices, s.blocks, s.block, s.block}, at::kFloat);
  std::vector<SliceGrad> parts(bg * slices);
  for (int64_t i = 0; i < bg * slices; i++)
    parts[i] = {mutable_data_of<float>(part_db) + i * s.length * np,
                mutable_data_of<float>(part_dc) + i * s.length * np,
                mutable_data_of<float>(part_cb) + i * s.blocks * s.block * s.block};
  parallel_for(bg * slices, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++) {
      int64_t slice = i % slices, group = i / slices % s.groups, row = i / slices / s.groups;
      for (int64_t h = per_group * slice / slices; h < per_group * (slice + 1) / slices; h++)
        state_space_kernels().backward(s, g, parts[i], row, group * per_group + h);
    }
  });
  parallel_for(bg, 1, [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++) {
      int64_t row = i / s.groups, group = i % s.groups,
              at = (row * s.length * s.groups + group) * s.state;
      state_space_kernels().finish(s, parts.data() + i * slices, static_cast<int>(slices), row,
                                   group, mutable_data_of<float>(db) + at,
                                   mutable_data_of<float>(dc) + at, s.groups * s.state);
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

} // namespace conquer::cpu
