// rope.cpp: the rotation of queries and keys and the split of a fused projection, tokens shared out
// among the threads.
#include "cpu.h"

namespace conquer::cpu {

namespace {

// Rotates x [B,L,N,P] by `direction` into y [B,L,N,P]; without cos it copies. Both may be strided
// except in P. With columns, token l goes to row columns[b,l] of y, whose second dimension is then
// a cache's.
void rotate(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, float direction,
            const at::Tensor &y, const at::Tensor &columns = {}) {
  const int64_t B = x.size(0), L = x.size(1), N = x.size(2), P = x.size(3),
                half = cos.defined() ? cos.size(-1) : 0;
  const int64_t xb = x.stride(0), xl = x.stride(1), xn = x.stride(2), yb = y.stride(0),
                yl = y.stride(1), yn = y.stride(2);
  const int64_t table_b = half && cos.size(0) > 1 ? L * half : 0;
  const float *c = half ? data_of<float>(cos) : nullptr, *s = half ? data_of<float>(sin) : nullptr;
  const int64_t *column = columns.defined() ? data_of<int64_t>(columns) : nullptr,
                column_b = column && columns.size(0) > 1 ? L : 0;
  with_type(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T *in = data_of<T>(x);
    T *out = mutable_data_of<T>(y);
    parallel_for(B * L, rows_per_share(N * P), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / L, l = i % L, table = b * table_b + l * half,
                      row = column ? column[b * column_b + l] : l;
        kernels<T>().rotate(in + b * xb + l * xl, xn, N, P, c + table, s + table, half, direction,
                            out + b * yb + row * yl, yn);
      }
    });
  });
}

} // namespace

void rope_qkv(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
              const at::Tensor &columns, const at::Tensor &q, const at::Tensor &k,
              const at::Tensor &v) {
  const int64_t H = q.size(1), K = k.size(1);
  if (columns.defined())
    check_positions(columns, k.size(2));
  at::Tensor heads = qkv.unflatten(-1, {H + 2 * K, q.size(3)});
  rotate(heads.narrow(2, 0, H), cos, sin, 1, q.transpose(1, 2));
  rotate(heads.narrow(2, H, K), cos, sin, 1, k.transpose(1, 2), columns);
  rotate(heads.narrow(2, H + K, K), {}, {}, 1, v.transpose(1, 2), columns);
}

void rope_qkv_grad(const at::Tensor &dq, const at::Tensor &dk, const at::Tensor &dv,
                   const at::Tensor &cos, const at::Tensor &sin, const at::Tensor &dqkv) {
  const int64_t H = dq.size(1), K = dk.size(1);
  at::Tensor heads = dqkv.unflatten(-1, {H + 2 * K, dq.size(3)});
  rotate(dq.transpose(1, 2), cos, sin, -1, heads.narrow(2, 0, H));
  rotate(dk.transpose(1, 2), cos, sin, -1, heads.narrow(2, H, K));
  rotate(dv.transpose(1, 2), {}, {}, -1, heads.narrow(2, H + K, K));
}

} // namespace conquer::cpu
