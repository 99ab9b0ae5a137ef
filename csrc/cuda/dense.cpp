// dense.cpp: a transformer's operators on a GPU: launches the kernels of dense.py, attend.py and
// tail_hopper.py in ../triton/kernels.
#include "blocks.h"
#include "triton.h"

#include <c10/cuda/CUDAGuard.h>

#include <cmath>
#include <map>
#include <mutex>

namespace conquer::cuda {

namespace {

using namespace triton;

// Returns whether the compiled kernels accept t: its dtype, and a start at a multiple of 16 bytes.
bool accepts(const at::Tensor &t) {
  auto type = t.scalar_type();
  return (type == at::kBFloat16 || type == at::kHalf || type == at::kFloat) && t.numel() > 0 &&
         reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 && triton::available();
}

void rms_norm(const at::Tensor &x, const at::Tensor &weight, double eps, const at::Tensor &y,
              const at::Tensor &rstd) {
  c10::cuda::CUDAGuard guard(x.device());
  int64_t width = weight.numel();
  Arguments args;
  args << ptr(x) << ptr(weight) << ptr(y) << ptr(rstd) << width << static_cast<float>(eps)
       << int64_t(rstd.defined());
  launch(keys::rms_norm(dtype_name(x), width), grid(x.numel() / width), args);
}

at::Tensor rms_norm_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &weight,
                         const at::Tensor &rstd, bool wants_dweight, const at::Tensor &dx) {
  c10::cuda::CUDAGuard guard(x.device());
  int64_t width = weight.numel(), rows = x.numel() / width,
          programs = std::min<int64_t>(rows, 4 * sm_count());
  at::Tensor part;
  if (wants_dweight)
    part = at::empty({programs, width}, x.options().dtype(at::kFloat));
  Arguments args;
  args << ptr(dy) << ptr(x) << ptr(weight) << ptr(rstd) << ptr(dx) << ptr(part) << rows << width;
  launch(keys::rms_norm_grad(dtype_name(x), wants_dweight, width), grid(programs), args);
  return wants_dweight ? part.sum(0).to(weight.scalar_type()) : part;
}

void rope_qkv(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
              const at::Tensor &columns, const at::Tensor &q, const at::Tensor &k,
              const at::Tensor &v) {
  c10::cuda::CUDAGuard guard(qkv.device());
  int64_t batch = qkv.size(0), length = qkv.size(1), heads = q.size(1), key_heads = k.size(1),
          width = q.size(3), half = cos.size(2);
  Arguments args;
  args << ptr(qkv) << ptr(cos) << ptr(sin) << ptr(q) << ptr(k) << ptr(v) << ptr(columns) << heads
       << key_heads << length << width << half << (cos.size(0) > 1 ? length * half : 0)
       << int64_t(columns.defined()) << (columns.defined() && columns.size(0) > 1 ? length : 0)
       << q.stride(0) << q.stride(1) << q.stride(2) << k.stride(0) << k.stride(1) << k.stride(2);
  launch(keys::rope_qkv(dtype_name(qkv), half),
         grid(batch * length, ceil_div(heads + 2 * key_heads, tuning::rope_qkv_HEADS)), args);
}

void rope_qkv_grad(const at::Tensor &dq, const at::Tensor &dk, const at::Tensor &dv,
                   const at::Tensor &cos, const at::Tensor &sin, const at::Tensor &dqkv) {
  c10::cuda::CUDAGuard guard(dqkv.device());
  int64_t batch = dqkv.size(0), length = dqkv.size(1), heads = dq.size(1), key_heads = dk.size(1),
          half = cos.size(2);
  Arguments args;
  args << ptr(dq) << ptr(dk) << ptr(dv) << ptr(cos) << ptr(sin) << ptr(dqkv) << heads << key_heads
       << length << dq.size(3) << half << (cos.size(0) > 1 ? length * half : 0);
  for (const at::Tensor *t : {&dq, &dk, &dv})
    args << t->stride(0) << t->stride(1) << t->stride(2);
  launch(keys::rope_qkv_grad(dtype_name(dqkv), half),
         grid(batch * length, ceil_div(heads + 2 * key_heads, tuning::rope_qkv_grad_HEADS)), args);
}

void swiglu(const at::Tensor &x, const at::Tensor &y) {
  c10::cuda::CUDAGuard guard(x.device());
  int64_t width = y.size(-1);
  Arguments args;
  args << ptr(x) << ptr(y) << width;
  launch(keys::swiglu(dtype_name(x)),
         grid(y.numel() / width, ceil_div(width, tuning::swiglu_BLOCK)), args);
}

void swiglu_grad(const at::Tensor &dy, const at::Tensor &x, const at::Tensor &dx) {
  c10::cuda::CUDAGuard guard(x.device());
  int64_t width = dy.size(-1);
  Arguments args;
  args << ptr(dy) << ptr(x) << ptr(dx) << width;
  launch(keys::swiglu_grad(dtype_name(x)),
         grid(dy.numel() / width, ceil_div(width, tuning::swiglu_grad_BLOCK)), args);
}

void cross_entropy(const ops::CrossEntropyRows &rows) {
  const at::Tensor &logits = rows.logits;
  c10::cuda::CUDAGuard guard(logits.device());
  int64_t vocabulary = logits.size(1);
  Arguments args;
  args << ptr(logits) << ptr(rows.targets) << ptr(rows.nll) << vocabulary
       << static_cast<float>(rows.scale);
  launch(keys::cross_entropy(dtype_name(logits), rows.gradient, vocabulary), grid(logits.size(0)),
         args);
}

// The number of rows of x [...,D].
int64_t rows_of(const at::Tensor &x) { return x.numel() / x.size(-1); }
// An uninitialized tensor [...,width] for x [...,D].
at::Tensor empty_rows(const at::Tensor &x, int64_t width) {
  auto shape = x.sizes().vec();
  shape.back() = width;
  return at::empty(shape, x.options());
}

at::Tensor normalized(const at::Tensor &x, const at::Tensor &weight, double eps) {
  at::Tensor y = at::empty_like(x);
  rms_norm(x, weight, eps, y, {});
  return y;
}

// A GEMM of up to 16 rows on the tensor cores, with the inner dimension split so that every SM has
// work. Returns the partial sums, float32 [splits,M,N].
at::Tensor split_k(const at::Tensor &x, const at::Tensor &weight) {
  int64_t m = rows_of(x), depth = x.size(-1), width = weight.size(0),
          tile = tuning::split_k_gemm_BK(is_fp32(dtype_name(x)));
  int64_t blocks = ceil_div(width, tuning::split_k_gemm_BN),
          wanted = std::max<int64_t>(1, sm_count() / blocks);
  int64_t span = ceil_div(ceil_div(depth, wanted), tile) * tile, splits = ceil_div(depth, span);
  at::Tensor part = at::empty({splits, m, width}, x.options().dtype(at::kFloat));
  Arguments args;
  args << ptr(x) << ptr(weight) << ptr(part) << m << width << depth << span;
  launch(keys::split_k_gemm(dtype_name(x)), grid(blocks, splits), args);
  return part;
}

// Adds the sums of split_k or block_gemm, and bias and residual if they are defined, to y.
void add_splits(const at::Tensor &part, const at::Tensor &bias, const at::Tensor &residual,
                const at::Tensor &y) {
  int64_t m = part.size(1), width = part.size(2);
  Arguments args;
  args << ptr(part) << ptr(bias) << ptr(residual) << ptr(y) << m << width << part.size(0)
       << int64_t(bias.defined()) << int64_t(residual.defined());
  launch(keys::sum_splits(dtype_name(y)), grid(m, ceil_div(width, tuning::sum_splits_BLOCK)), args);
}

// Several rows times the parts of a weight in blocks.
at::Tensor block_rows(const at::Tensor &x, const std::vector<ops::BlockPart> &parts, int64_t width,
                      const at::Tensor &bias, const at::Tensor &residual) {
  at::Tensor y = empty_rows(x, width);
  if (parts.size() == 1) {
    add_splits(block_gemm(x, parts[0]), bias, residual, y);
    return y;
  }
  int64_t first = 0;
  for (const ops::BlockPart &part : parts) {
    at::Tensor some = empty_rows(x, part.rows);
    add_splits(block_gemm(x, part),
               bias.defined() ? bias.view({-1}).narrow(0, first, part.rows).contiguous() : bias, {},
               some);
    y.narrow(-1, first, part.rows).copy_(some);
    first += part.rows;
  }
  return residual.defined() ? y.add_(residual) : y;
}

// ops::Device::block_linear.
void block_linear(const at::Tensor &x, const std::vector<ops::BlockPart> &parts,
                  const at::Tensor &y) {
  c10::cuda::CUDAGuard guard(x.device());
  int64_t first = 0;
  for (const ops::BlockPart &part : parts) {
    if (part.bits != 0)
      y.narrow(1, first, part.rows)
          .copy_(x.size(0) == 1 ? block_gemv(x, {part}, part.rows, {}, {})
                                : block_gemm(x, part).sum(0));
    first += part.rows;
  }
}

at::Tensor linear(const at::Tensor &x, const at::Tensor &norm, double eps, const at::Tensor &weight,
                  const at::Tensor &bias, const at::Tensor &residual) {
  if (const auto *parts = ops::blocks_of(weight)) {
    const at::Tensor in = norm.defined() ? normalized(x, norm, eps) : x;
    return rows_of(x) == 1 ? block_gemv(in, *parts, weight.size(0), bias, residual)
                           : block_rows(in, *parts, weight.size(0), bias, residual);
  }
  c10::cuda::CUDAGuard guard(x.device());
  int64_t m = rows_of(x), width = weight.size(0);
  at::Tensor y = empty_rows(x, width);
  Arguments args;
  if (m == 1 || m == 2 || m == 4) {
    args << ptr(x) << ptr(norm) << ptr(weight) << ptr(bias) << ptr(residual) << ptr(y) << width
         << x.size(-1) << static_cast<float>(eps) << int64_t(bias.defined())
         << int64_t(residual.defined());
    launch(keys::gemv(dtype_name(x), m, norm.defined()), grid(ceil_div(width, tuning::gemv_BN)),
           args);
    return y;
  }
  add_splits(split_k(norm.defined() ? normalized(x, norm, eps) : x, weight), bias, residual, y);
  return y;
}

at::Tensor linear_swiglu(const at::Tensor &x, const at::Tensor &norm, double eps,
                         const at::Tensor &weight, const at::Tensor &bias) {
  c10::cuda::CUDAGuard guard(x.device());
  const auto *parts = ops::blocks_of(weight);
  int64_t m = rows_of(x), width = weight.size(0) / 2;
  if (parts && m == 1)
    return block_gemv_swiglu(norm.defined() ? normalized(x, norm, eps) : x, parts->at(0), bias);
  at::Tensor y = empty_rows(x, width);
  Arguments args;
  if (!parts && m <= 2) {
    args << ptr(x) << ptr(norm) << ptr(weight) << ptr(bias) << ptr(y) << width << x.size(-1)
         << static_cast<float>(eps) << int64_t(bias.defined());
    launch(keys::gemv_swiglu(dtype_name(x), m, norm.defined()),
           grid(ceil_div(width, tuning::gemv_swiglu_BN(m))), args);
    return y;
  }
  const at::Tensor in = norm.defined() ? normalized(x, norm, eps) : x,
                   part = parts ? block_gemm(in, parts->at(0)) : split_k(in, weight);
  args << ptr(part) << ptr(bias) << ptr(y) << m << width << part.size(0) << int64_t(bias.defined());
  launch(keys::sum_splits_swiglu(dtype_name(x)),
         grid(m, ceil_div(width, tuning::sum_splits_swiglu_BLOCK)), args);
  return y;
}

// Counters with which the programs of one kernel wait for each other, one set per device: one
// stream of a device works at a time. block_tail uses the one at `barrier`, decode_attention those
// from `arrivals` on, which it leaves 0.
constexpr int64_t counters = 1 << 16;
enum { barrier = 0, arrivals = 16 };
int32_t *counters_of(const at::Tensor &like) {
  static std::mutex mutex;
  static auto &all = *new std::map<int, at::Tensor>; // never freed: CUDA may be unloaded first
  std::lock_guard<std::mutex> lock(mutex);
  at::Tensor &t = all[like.get_device()];
  if (!t.defined())
    t = at::zeros({counters}, like.options().dtype(at::kInt));
  return t.mutable_data_ptr<int32_t>();
}

// block_tail of up to 64 rows of bfloat16: four launches of tail_gemm. It has no limits on widths.
void block_tail_rows(const at::Tensor &x, const at::Tensor &mixed, const ops::BlockTail &t,
                     at::Tensor &y, at::Tensor &next) {
  const int64_t m = rows_of(x), width = x.size(-1), inner = t.down.size(-1),
                bm = fitting(tuning::tail_gemm_BM, m), bn = tuning::tail_gemm_BN,
                bk = tuning::tail_gemm_BK;
  const Dtype dtype = dtype_name(x);
  auto floats = x.options().dtype(at::kFloat);
  // What a norm needs of the GEMM before it.
  at::Tensor scaled = at::empty({m, width}, x.options()),
             squares = at::empty({ceil_div(width, bn), bm}, floats);
  auto gemm = [&](const at::Tensor &in, const at::Tensor &w, const at::Tensor &bias,
                  const at::Tensor &residual, const at::Tensor &norm, const at::Tensor &out,
                  double eps, bool gated) {
    int64_t columns = out.size(-1), depth = w.size(1), tiles = ceil_div(columns, bn),
            wanted = gated ? 1 : std::max<int64_t>(1, sm_count() / tiles),
            span = ceil_div(ceil_div(depth, wanted), bk) * bk, splits = ceil_div(depth, span);
    TORCH_CHECK(tiles <= counters - arrivals, "block_tail: rows of ", columns, " are too wide");
    at::Tensor part = splits > 1 ? at::empty({tiles, splits, bn, bm}, floats) : at::Tensor();
    Arguments args;
    args << ptr(in) << ptr(w) << ptr(bias) << ptr(residual) << ptr(norm) << ptr(out) << ptr(scaled)
         << ptr(squares) << ptr(part) << static_cast<const void *>(counters_of(x) + arrivals) << m
         << columns << depth << span << splits << int64_t(bias.defined()) << int64_t(norm.defined())
         << static_cast<float>(eps);
    launch(keys::tail_gemm(dtype, gated, residual.defined(), m), grid(tiles, splits), args);
  };
  at::Tensor z = at::empty_like(x), h = at::empty({m, inner}, x.options());
  y = at::empty_like(x);
  gemm(t.norm.defined() ? normalized(mixed, t.norm, t.eps) : mixed, t.output, {}, x, t.mlp_norm, z,
       0, false);
  gemm(scaled, t.gate_up, {}, {}, {}, h, t.mlp_eps, true);
  gemm(h, t.down, {}, z, t.next.defined() ? t.next_norm : at::Tensor(), y, 0, false);
  if (t.next.defined())
    gemm(scaled, t.next, t.next_bias, {}, {}, next = empty_rows(x, t.next.size(0)), t.next_eps,
         false);
}

// block_tail of one row: one kernel of Hopper GPUs.
void block_tail_row(const std::string &variant, const at::Tensor &x, const at::Tensor &mixed,
                    const ops::BlockTail &t, at::Tensor &y, at::Tensor &next) {
  int64_t inner = t.down.size(-1), ahead = t.next.defined() ? t.next.size(0) : 0;
  y = at::empty_like(x);
  at::Tensor z = at::empty_like(x), h = at::empty({inner}, x.options());
  if (ahead > 0)
    next = empty_rows(x, ahead);
  Arguments args;
  args << ptr(x) << ptr(mixed) << ptr(t.norm) << ptr(t.output) << ptr(t.mlp_norm) << ptr(t.gate_up)
       << ptr(t.down) << ptr(t.next_norm) << ptr(t.next) << ptr(t.next_bias) << ptr(z) << ptr(h)
       << ptr(y) << ptr(next) << static_cast<const void *>(counters_of(x) + barrier)
       << mixed.numel() << x.numel() << inner << ahead << static_cast<float>(t.eps)
       << static_cast<float>(t.mlp_eps) << static_cast<float>(t.next_eps)
       << int64_t(t.norm.defined()) << int64_t(t.next_bias.defined());
  launch(variant, grid(sm_count()), args);
}

std::string block_tail(const at::Tensor &x, const at::Tensor &mixed, const ops::BlockTail &t,
                       at::Tensor &y, at::Tensor &next) {
  c10::cuda::CUDAGuard guard(x.device());
  for (const at::Tensor *w : {&x, &mixed, &t.norm, &t.output, &t.mlp_norm, &t.gate_up, &t.down,
                              &t.next_norm, &t.next, &t.next_bias})
    if (w->defined() && !accepts(*w))
      return triton::available() ? "a tensor does not begin at a multiple of 16 bytes"
                                 : "there are no compiled kernels";
  const int64_t rows = rows_of(x), widest = std::max(mixed.size(-1), x.size(-1));
  if (rows == 1 && widest <= tuning::block_tail_WIDTH.back() &&
      t.down.size(-1) <= tuning::block_tail_INNER) {
    std::string variant = keys::block_tail(dtype_name(x), widest);
    if (triton::has(variant)) {
      block_tail_row(variant, x, mixed, t, y, next);
      return "";
    }
  }
  if (rows > tuning::tail_gemm_BM.back())
    return c10::str("it takes up to ", tuning::tail_gemm_BM.back(), " rows, not ", rows);
  if (!triton::has(keys::tail_gemm(dtype_name(x), true, false, rows)))
    return c10::str("there is no kernel for ", rows, rows == 1 ? " row of " : " rows of ",
                    x.scalar_type() == at::kHalf ? "float16" : "bfloat16",
                    " and a GPU of compute capability ", triton::capability());
  block_tail_rows(x, mixed, t, y, next);
  return "";
}

// The number of splits of each cache row's positions. An SM holds `programs` of them at a time.
// Returns the fewest splits that fill the last round of programs to 90 %, or else those that fill
// it best; a split of a full cache has at least 64 positions. The capacity decides instead of the
// length, so that one recorded graph serves every length.
int64_t cache_splits(int64_t rows, int64_t capacity, int64_t programs) {
  const double resident = programs * sm_count();
  int64_t most = std::clamp<int64_t>(ceil_div(capacity, 64), 1, 64), best = 1;
  double highest = 0;
  for (int64_t splits = 1; splits <= most && highest < 0.9; splits++) {
    double rounds = rows * splits / resident, full = rounds / std::ceil(rounds);
    if (full > highest)
      highest = full, best = splits;
  }
  return best;
}

at::Tensor decode_attention(const at::Tensor &qkv, const at::Tensor &cos, const at::Tensor &sin,
                            const at::Tensor &k, const at::Tensor &v, const at::Tensor &lengths,
                            const at::Tensor &starts, double scale) {
  c10::cuda::CUDAGuard guard(qkv.device());
  int64_t batch = k.size(0), key_heads = k.size(1), width = k.size(3),
          heads = qkv.size(2) / width - 2 * key_heads, half = cos.size(2), rows = batch * key_heads;
  // With more rows than SMs the other kernel is faster.
  bool mha = heads == key_heads && rows <= sm_count();
  const bool many = rows >= sm_count();
  const int64_t resident = mha ? 1 : many && !is_fp32(dtype_name(qkv)) ? 8 : 3;
  int64_t splits = cache_splits(rows, k.size(2), resident),
          queries = mha ? 1 : tuning::decode_attention_G;
  TORCH_CHECK(rows <= counters - arrivals, "decode_attention: ", batch, " sequences with ",
              key_heads, " key heads have more cache rows than ", counters - arrivals);
  auto floats = qkv.options().dtype(at::kFloat);
  at::Tensor part = at::empty({rows, splits, queries, width}, floats),
             top = at::empty({rows, splits, queries}, floats), mass = at::empty_like(top),
             y = at::empty({batch, 1, heads * width}, qkv.options());
  Arguments args;
  args << ptr(qkv) << ptr(cos) << ptr(sin) << ptr(k) << ptr(v) << ptr(lengths) << ptr(starts)
       << ptr(part) << ptr(top) << ptr(mass)
       << static_cast<const void *>(counters_of(qkv) + arrivals) << ptr(y) << heads;
  if (!mha)
    args << key_heads;
  args << width << half << static_cast<float>(scale) << splits << int64_t(starts.defined())
       << (cos.size(0) > 1 ? half : 0) << k.stride(0) << k.stride(1) << k.stride(2);
  if (mha)
    launch(keys::decode_attention_mha(dtype_name(qkv), width), grid(rows, splits), args);
  else
    launch(keys::decode_attention(dtype_name(qkv), many, width), grid(rows, splits), args);
  return y;
}

at::Tensor argmax(const at::Tensor &logits) {
  c10::cuda::CUDAGuard guard(logits.device());
  const int64_t rows = logits.size(0), vocabulary = logits.size(1), block = tuning::argmax_BLOCK;
  // Several programs read a row if there are fewer rows than SMs.
  int64_t wanted = std::clamp<int64_t>(sm_count() / std::max<int64_t>(1, rows), 1,
                                       tuning::argmax_SPLITS),
          span = ceil_div(ceil_div(vocabulary, wanted), block) * block,
          splits = ceil_div(vocabulary, span);
  at::Tensor ids = at::empty({rows}, logits.options().dtype(at::kLong)),
             place = at::empty({rows, splits}, logits.options().dtype(at::kInt)),
             top = at::empty({rows, splits}, logits.options().dtype(at::kFloat));
  Arguments args;
  args << ptr(logits) << ptr(ids) << ptr(top) << ptr(place)
       << static_cast<const void *>(counters_of(logits) + arrivals) << vocabulary << span << splits;
  launch(keys::argmax(dtype_name(logits)), grid(rows, splits), args);
  return ids;
}

void add_rows(const at::Tensor &grad, const at::Tensor &ids, const at::Tensor &dy) {
  c10::cuda::CUDAGuard guard(grad.device());
  auto [sorted, order] = ids.reshape(-1).sort(/*stable=*/true, 0, false);
  int64_t width = grad.size(1);
  Arguments args;
  args << ptr(dy) << ptr(sorted) << ptr(order) << ptr(grad) << sorted.numel() << width;
  launch(keys::add_rows(dtype_name(grad)),
         grid(sorted.numel(), ceil_div(width, tuning::add_rows_BLOCK)), args);
}

void multiply(const at::Tensor &y, const at::Tensor &factor) {
  c10::cuda::CUDAGuard guard(y.device());
  Arguments args;
  args << ptr(y) << ptr(factor) << y.numel();
  launch(keys::multiply(dtype_name(y)), grid(ceil_div(y.numel(), tuning::multiply_BLOCK)), args);
}

// The weight that each program of adamw works on, and its first element: int64 [programs,2]. There
// are tens of thousands, the same in each step. The lists are kept by device and lengths, since the
// GPU would idle while the host makes them.
at::Tensor chunks_of(const std::vector<at::Tensor> &weights, int64_t span) {
  constexpr size_t most = 16; // an optimizer has two at most
  static std::mutex mutex;
  // Never freed: CUDA may be unloaded first.
  static auto &kept = *new std::map<std::vector<int64_t>, at::Tensor>;
  std::vector<int64_t> key = {weights[0].get_device()};
  for (auto &w : weights)
    key.push_back(w.numel());
  std::lock_guard<std::mutex> lock(mutex);
  if (auto found = kept.find(key); found != kept.end())
    return found->second;
  std::vector<int64_t> list;
  for (size_t i = 0; i < weights.size(); i++)
    for (int64_t start = 0, length = weights[i].numel(); start < length; start += span)
      list.insert(list.end(), {static_cast<int64_t>(i), start});
  if (kept.size() == most)
    kept.clear();
  return kept[key] = at::tensor(list, at::kLong).view({-1, 2}).to(weights[0].device());
}

void adamw(const ops::OptimizerStep &o) {
  const auto &weights = o.weights, &master = o.master;
  c10::cuda::CUDAGuard guard(weights[0].device());
  static_assert(tuning::adamw_SPAN == tuning::adamw_8bit_SPAN &&
                tuning::adamw_8bit_SPAN % (256 * tuning::adamw_8bit_ROWS) == 0);
  int64_t count = static_cast<int64_t>(weights.size());
  at::Tensor chunks = chunks_of(weights, tuning::adamw_SPAN);
  at::Tensor host =
      at::empty({count * 9}, at::TensorOptions().dtype(at::kLong).pinned_memory(true));
  int64_t *entry = host.mutable_data_ptr<int64_t>();
  auto address = [](const std::vector<at::Tensor> &list, int64_t i) {
    return list.empty()
               ? 0
               : static_cast<int64_t>(reinterpret_cast<uintptr_t>(list[i].const_data_ptr()));
  };
  for (int64_t i = 0; i < count; i++, entry += 9) {
    float shrink = static_cast<float>(o.rate * o.decays[i]);
    int32_t bits;
    std::memcpy(&bits, &shrink, 4);
    entry[0] = address(weights, i), entry[1] = address(o.gradients, i);
    entry[2] = address(o.means, i), entry[3] = address(o.squares, i);
    entry[4] = address(master, i), entry[5] = address(o.exponents, i);
    entry[6] = weights[i].numel(), entry[7] = bits;
    entry[8] = o.keys[i];
  }
  at::Tensor table = host.to(weights[0].device(), /*non_blocking=*/true);
  Arguments args;
  args << ptr(table) << ptr(chunks) << ptr(weights[0]) << static_cast<float>(o.scale)
       << static_cast<float>(o.rate) << static_cast<float>(o.beta1) << static_cast<float>(o.beta2)
       << static_cast<float>(o.eps) << static_cast<float>(1 - std::pow(o.beta1, o.step))
       << static_cast<float>(std::sqrt(1 - std::pow(o.beta2, o.step)));
  const Dtype dtype = dtype_name(weights[0]);
  const auto moments = o.means[0].scalar_type();
  launch(moments == at::kByte ? keys::adamw_8bit(dtype, !master.empty())
                              : keys::adamw(dtype, !master.empty(), moments == at::kBFloat16),
         grid(chunks.size(0)), args);
}

} // namespace

void add_dense(ops::Device &d) {
  d.accepts = accepts;
  d.limits.width_multiple = 16;
  d.limits.norm_width = tuning::rms_norm_BLOCK.back();
  d.limits.rotary_angles = tuning::rope_qkv_BH.back();
  d.limits.decode_head_width = tuning::decode_attention_BP.back();
  d.limits.decode_group = tuning::decode_attention_G;
  d.block_linear = block_linear;
  d.limits.block_rows_float32 = 1;
  d.limits.block_rows_16bit = tuning::block_gemm_BM.back();
  d.limits.linear_rows_float32 = d.limits.linear_rows_16bit = tuning::split_k_gemm_BM;
  d.limits.linear_fuses = true;
  d.rms_norm = rms_norm;
  d.rms_norm_grad = rms_norm_grad;
  d.rope_qkv = rope_qkv;
  d.rope_qkv_grad = rope_qkv_grad;
  d.swiglu = swiglu;
  d.swiglu_grad = swiglu_grad;
  d.cross_entropy = cross_entropy;
  d.linear = linear;
  d.linear_swiglu = linear_swiglu;
  d.block_tail = block_tail;
  d.decode_attention = decode_attention;
  d.block_unpack = block_unpack;
  d.argmax = argmax;
  d.add_rows = add_rows;
  d.multiply = multiply;
  d.adamw = adamw;
}

} // namespace conquer::cuda
