// gated_rms_norm.cpp: gated RMS normalization, rows shared out among the threads.
#include "state_space.h"

namespace conquer::cpu {

at::Tensor gated_rms_norm(const ops::GatedNormInput &in) {
  at::Tensor x = as_float(in.x), z = as_float(in.z), weight = as_float(in.weight),
             y = at::empty_like(x);
  const int64_t dim = x.size(-1);
  const float *xs = data_of<float>(x), *zs = data_of<float>(z), *w = data_of<float>(weight);
  float *ys = mutable_data_of<float>(y);
  parallel_for(x.numel() / dim, rows_per_share(dim), [&](int64_t from, int64_t until) {
    for (int64_t i = from; i < until; i++)
      state_space_kernels().norm(dim, in.group, float(in.eps), xs + i * dim,
                                 zs ? zs + i * dim : nullptr, w, ys + i * dim);
  });
  return y.to(in.x.scalar_type());
}

void gated_rms_norm_grad(const ops::GatedNormInput &in, const at::Tensor &dy,
                         ops::GatedNormGradients &g) {
  at::Tensor x = as_float(in.x), z = as_float(in.z), weight = as_float(in.weight), d = as_float(dy);
  const int64_t dim = x.size(-1), rows = x.numel() / dim;
  at::Tensor dx = at::empty_like(x), dz = z.defined() ? at::empty_like(x) : z;
  const int64_t parts = std::min<int64_t>(rows, at::get_num_threads());
  at::Tensor dweight = at::zeros({parts, dim}, at::kFloat);
  const float *xs = data_of<float>(x), *zs = data_of<float>(z), *w = data_of<float>(weight),
              *ds = data_of<float>(d);
  float *dxs = mutable_data_of<float>(dx), *dzs = mutable_data_of<float>(dz),
        *dws = mutable_data_of<float>(dweight);
  parallel_for(parts, 1, [&](int64_t from, int64_t until) {
    for (int64_t part = from; part < until; part++)
      for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; i++)
        state_space_kernels().norm_grad(dim, in.group, float(in.eps), xs + i * dim,
                                        zs ? zs + i * dim : nullptr, w, ds + i * dim, dxs + i * dim,
                                        dzs ? dzs + i * dim : nullptr, dws + part * dim);
  });
  g.x = dx.to(in.x.scalar_type());
  if (z.defined())
    g.z = dz.to(in.z.scalar_type());
  g.weight = dweight.sum(0).to(in.weight.scalar_type());
}

} // namespace conquer::cpu
