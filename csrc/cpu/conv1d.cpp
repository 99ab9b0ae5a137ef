// conv1d.cpp: the causal convolution and its step, rows shared out among the threads.
#include "state_space.h"

namespace conquer::cpu {

namespace {

struct Conv {
  at::Tensor x, weight, bias, initial, segment; // weight [W,D]
  int64_t batch, length, dim, width;

  explicit Conv(const ops::ConvInput &in)
      : x(as_float(in.x)), weight(as_float(in.weight).t().contiguous()), bias(as_float(in.bias)),
        initial(as_float(in.initial)), segment(in.segment), batch(x.size(0)), length(x.size(1)),
        dim(x.size(2)), width(weight.size(0)) {}

  // y [B,L,D]; pre (or null) receives the sums before the SiLU.
  void run(bool silu, float *y, float *pre) const {
    const float *xs = data_of<float>(x), *h = data_of<float>(initial);
    const int32_t *seg = data_of<int32_t>(segment);
    parallel_for(batch * length, rows_per_share(dim), [&](int64_t from, int64_t until) {
      while (from < until) { // tokens of one sequence at a time
        int64_t row = from / length, t0 = from % length, t1 = std::min(length, t0 + until - from),
                at = row * length;
        state_space_kernels().conv(t0, t1, dim, width, xs + at * dim, data_of<float>(weight),
                                   data_of<float>(bias), h ? h + row * (width - 1) * dim : nullptr,
                                   seg ? seg + at : nullptr, silu, y + at * dim,
                                   pre ? pre + at * dim : nullptr);
        from += t1 - t0;
      }
    });
  }
};

} // namespace

at::Tensor causal_conv1d(const ops::ConvInput &in) {
  Conv conv(in);
  at::Tensor y = at::empty_like(conv.x);
  conv.run(in.silu, mutable_data_of<float>(y), nullptr);
  return y.to(in.x.scalar_type());
}

void causal_conv1d_grad(const ops::ConvInput &in, const at::Tensor &dy, ops::ConvGradients &g) {
  Conv conv(in);
  const int64_t history = conv.width - 1, length = conv.length;
  at::Tensor d = as_float(dy);
  if (in.silu) {
    at::Tensor y = at::empty_like(conv.x), pre = at::empty_like(conv.x);
    conv.run(false, mutable_data_of<float>(pre), nullptr);
    const float *ps = data_of<float>(pre), *dys = data_of<float>(d);
    float *to = mutable_data_of<float>(y);
    parallel_for(y.numel(), 16384, [&](int64_t from, int64_t until) {
      state_space_kernels().silu_grad(until - from, ps + from, dys + from, to + from);
    });
    d = y;
  }
  // Over [history, x] the convolution is a sum of `width` shifted products; its gradients shift the
  // other way.
  at::Tensor before = conv.initial.defined()
                          ? conv.initial
                          : at::zeros({conv.batch, history, conv.dim}, at::kFloat);
  at::Tensor padded = at::cat({before, conv.x}, 1), dpadded = at::zeros_like(padded),
             dweight = at::empty_like(conv.weight), segment;
  if (in.segment.defined())
    segment = at::cat({in.segment.slice(1, 0, 1).expand({conv.batch, history}), in.segment}, 1);
  for (int64_t k = 0; k < conv.width; k++) {
    at::Tensor use = d;
    if (segment.defined())
      use = d * segment.slice(1, k, k + length).eq(in.segment).unsqueeze(2);
    dweight[k].copy_((use * padded.slice(1, k, k + length)).sum(at::IntArrayRef{0, 1}));
    dpadded.slice(1, k, k + length).addcmul_(use, conv.weight[k]);
  }
  g.x = dpadded.slice(1, history).to(in.x.scalar_type()).contiguous();
  g.weight = dweight.t().contiguous().to(in.weight.scalar_type());
  if (in.bias.defined())
    g.bias = d.sum(at::IntArrayRef{0, 1}).to(in.bias.scalar_type());
  if (in.initial.defined())
    g.initial = dpadded.slice(1, 0, history).to(in.initial.scalar_type()).contiguous();
}

at::Tensor conv1d_step(const at::Tensor &state, const ops::ConvInput &in) {
  at::Tensor y =
      causal_conv1d({in.x.unsqueeze(1), in.weight, in.bias, state, {}, in.silu}).squeeze(1);
  const int64_t history = state.size(1);
  if (history > 1)
    state.slice(1, 0, history - 1).copy_(state.slice(1, 1).clone());
  state.select(1, history - 1).copy_(in.x);
  return y;
}

} // namespace conquer::cpu
