// blocks.cpp: weights in quantized blocks, and linear layers and embeddings of them.
//
// While gradients are off the CPU's kernel multiplies blocks by activations of 8 bits, and a GPU's
// multiplies a single row by codes (linear.cpp calls it). While gradients are recorded, or without
// a kernel, a tile of rows at a time is unpacked, so that the backward pass differentiates the
// function that the forward pass computed. A tile is at most 16 MB on the CPU and 256 MB on a GPU,
// whatever the layer.
#include "blocks.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace conquer::ops {

namespace {

class Blocks final : public c10::TensorImpl {
public:
  Blocks(std::vector<BlockPart> all, at::ScalarType dtype)
      : TensorImpl(c10::DispatchKeySet(c10::DispatchKey::PrivateUse3),
                   c10::scalarTypeToTypeMeta(dtype), all[0].data.device()),
        parts(std::move(all)) {
    int64_t rows = 0;
    for (const BlockPart &part : parts)
      rows += part.rows;
    set_sizes_contiguous({rows, parts[0].columns});
    set_storage_access_should_throw();
  }
  const char *tensorimpl_type_name() const override { return "conquer::Blocks"; }

  const std::vector<BlockPart> parts;
};

constexpr int float8 = 260; // BlockKind::Float8

// The values of a part's rows from `first` on: out float32, on a GPU of any dtype.
void unpack_into(const BlockPart &part, int64_t first, const at::Tensor &out) {
  if (part.kind == 0) {
    out.copy_(part.data.narrow(0, first, out.size(0)));
  } else if (part.order.defined()) {
    at::Tensor reordered = at::empty(out.sizes(), out.options());
    registered_device(out).block_unpack(part, first, out.size(0), reordered);
    out.index_copy_(1, part.order, reordered);
  } else {
    registered_device(out).block_unpack(part, first, out.size(0), out);
  }
}

// Numbers of a tile: 16 MB on the CPU, 256 MB on a GPU.
int64_t tile_rows(const at::Tensor &weight) {
  const int64_t numbers = int64_t(1) << (weight.is_cuda() ? 27 : 22);
  return std::max<int64_t>(16, numbers / weight.size(1) / 16 * 16);
}

// Calls f(first, tile) for tiles of rows, unpacked to the weight's dtype.
template <class F> void for_tiles(const at::Tensor &weight, F &&f) {
  const std::vector<BlockPart> &parts = *blocks_of(weight);
  const int64_t rows = weight.size(0), step = tile_rows(weight);
  for (int64_t first = 0; first < rows; first += step)
    f(first, unpacked(parts, first, std::min(step, rows - first), weight.scalar_type()));
}

// x [M,D] times the weight, by tiles.
at::Tensor by_tiles(const at::Tensor &x, const at::Tensor &weight) {
  if (weight.size(0) <= tile_rows(weight))
    return gemm(x, unpacked(*blocks_of(weight), 0, weight.size(0), weight.scalar_type()).t());
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  for_tiles(weight, [&](int64_t first, const at::Tensor &tile) {
    y.narrow(1, first, tile.size(0)).copy_(gemm(x, tile.t()));
  });
  return y;
}

class BlockLinear : public torch::autograd::Function<BlockLinear> {
public:
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight) {
    ctx->saved_data["weight"] = weight;
    return by_tiles(x, weight);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    return {block_gemm(grads[0].contiguous(), ctx->saved_data["weight"].toTensor()), {}};
  }
};

} // namespace

BlockSize block_size(int kind) {
  switch (kind) {
  case 2:
    return {18, 32};
  case 3:
    return {20, 32};
  case 6:
    return {22, 32};
  case 7:
    return {24, 32};
  case 8:
    return {34, 32};
  case 10:
    return {84, 256};
  case 11:
    return {110, 256};
  case 12:
    return {144, 256};
  case 13:
    return {176, 256};
  case 14:
    return {210, 256};
  case 20:
    return {18, 32};
  case 23:
    return {136, 256};
  case 39:
    return {17, 32};
  case 256:
    return {20, 32};
  case 257:
    return {68, 128};
  case 258:
    return {36, 32};
  case 259:
    return {132, 128};
  case float8:
    return {1, 1};
  }
  return {0, 0};
}

const std::vector<BlockPart> *blocks_of(const at::Tensor &t) {
  const auto *blocks =
      t.defined() ? dynamic_cast<const Blocks *>(t.unsafeGetTensorImpl()) : nullptr;
  return blocks ? &blocks->parts : nullptr;
}

at::Tensor make_blocks(std::vector<BlockPart> parts) {
  TORCH_CHECK(!parts.empty(), "blocks: no parts");
  for (size_t i = 0; i < parts.size(); i++) {
    BlockPart &part = parts[i];
    const auto [bytes, numbers] = block_size(part.kind);
    if (part.order.defined()) {
      TORCH_CHECK(part.order.is_cpu() && part.order.scalar_type() == at::kLong &&
                      part.order.is_contiguous() &&
                      part.order.sizes() == at::IntArrayRef{part.columns},
                  "blocks: the order of columns must be contiguous int64 [", part.columns,
                  "] on the CPU, not ", part.order.sizes());
      const at::Tensor sorted = std::get<0>(part.order.sort());
      TORCH_CHECK(part.kind != 0 && sorted.equal(at::arange(part.columns, sorted.options())),
                  "blocks: the order of columns must hold each column once");
      if (i > 0 && parts[i - 1].order.defined() && parts[i - 1].order.equal(part.order))
        part.order = parts[i - 1].order; // one order of several parts is applied once
    }
    if (part.kind == 0) {
      TORCH_CHECK(part.data.dim() == 2 && part.data.scalar_type() == at::kFloat &&
                      part.data.is_cpu() && part.data.is_contiguous() && part.rows > 0 &&
                      part.data.size(1) == parts[0].columns,
                  "blocks: rows that are not quantized must be contiguous float32 [N,",
                  parts[0].columns, "] on the CPU");
      continue;
    }
    TORCH_CHECK(numbers > 0, "blocks: no kernel for blocks of kind ", part.kind);
    TORCH_CHECK(part.columns == parts[0].columns && part.columns > 0 && part.columns % numbers == 0,
                "blocks: rows of ", part.columns, " numbers, expected ", parts[0].columns,
                " and a multiple of ", numbers);
    TORCH_CHECK(part.data.dim() == 2 && part.data.scalar_type() == at::kByte &&
                    part.data.is_cpu() && part.data.is_contiguous() && part.rows > 0 &&
                    part.data.size(0) == part.rows &&
                    part.data.size(1) == part.columns / numbers * bytes,
                "blocks: data must be contiguous uint8 [", part.rows, ",",
                part.columns / numbers * bytes, "] on the CPU, not ", part.data.sizes());
    if (part.kind == float8)
      TORCH_CHECK(part.tile_rows > 0 && part.tile_columns > 0 && part.scales.defined() &&
                      part.scales.is_cpu() && part.scales.scalar_type() == at::kFloat &&
                      part.scales.is_contiguous() && part.scales.dim() == 2 &&
                      part.scales.size(0) == (part.rows + part.tile_rows - 1) / part.tile_rows &&
                      part.scales.size(1) ==
                          (part.columns + part.tile_columns - 1) / part.tile_columns,
                  "blocks: scales must be contiguous float32 on the CPU, one for each tile");
  }
  return at::detail::make_tensor<Blocks>(std::move(parts), at::kFloat);
}

// Bits of a GPU's codes for a kind.
static int code_bits(int kind) {
  return kind == 2 || kind == 3 || kind == 12 || kind == 256 || kind == 257 ? 4 : 8;
}

at::Tensor blocks_to_gpu(const std::vector<BlockPart> &parts, const at::Device &device,
                         at::ScalarType dtype) {
  std::vector<BlockPart> moved;
  for (const BlockPart &part : parts) {
    TORCH_CHECK(part.kind != float8 && !part.order.defined(),
                "there are no kernels for FP8 weights, or for columns in another order, on ",
                device);
    BlockPart to = part;
    if (part.kind == 0) {
      to.data = part.data.to(device, dtype);
      moved.push_back(to);
      continue;
    }
    to.bits = code_bits(part.kind);
    const int64_t groups = part.columns * to.bits / 128;
    auto words = part.data.options().dtype(at::kInt);
    to.data = at::empty({part.rows, groups, 4}, words);
    to.scales = at::empty({part.rows, groups}, words);
    TORCH_CHECK(registered_device(part.data).block_pack(part, to),
                "a scale of the quantized weight is too large for float16, in which the GPU keeps "
                "scales");
    to.data = to.data.to(device);
    to.scales = to.scales.to(device);
    if (!moved.empty() && moved.back().bits == to.bits) { // one part: fewer launches
      BlockPart &last = moved.back();
      last.data = at::cat({last.data, to.data});
      last.scales = at::cat({last.scales, to.scales});
      last.rows += to.rows;
    } else {
      moved.push_back(to);
    }
  }
  const Device &kernels = registered_device(moved[0].data);
  TORCH_CHECK(kernels.block_unpack &&
                  kernels.accepts(at::empty({1}, moved[0].data.options().dtype(dtype))),
              "there are no kernels for quantized weights in ", dtype, " on ", device);
  return at::detail::make_tensor<Blocks>(std::move(moved), dtype);
}

at::Tensor blocks_rows(const std::vector<BlockPart> &parts, int64_t first, int64_t rows,
                       at::ScalarType type) {
  std::vector<BlockPart> some;
  int64_t start = 0; // of the part
  for (const BlockPart &part : parts) {
    const int64_t a = std::max(first, start), b = std::min(first + rows, start + part.rows);
    if (a < b) {
      BlockPart &to = some.emplace_back(part);
      to.rows = b - a;
      to.data = part.data.narrow(0, a - start, b - a);
      if (part.bits > 0)
        to.scales = part.scales.narrow(0, a - start, b - a);
      else
        to.first += a - start;
    }
    start += part.rows;
  }
  return at::detail::make_tensor<Blocks>(std::move(some), type);
}

at::Tensor unpacked(const std::vector<BlockPart> &parts, int64_t first, int64_t rows,
                    at::ScalarType type) {
  const bool cuda = parts[0].data.is_cuda();
  at::Tensor out =
      at::empty({rows, parts[0].columns}, parts[0].data.options().dtype(cuda ? type : at::kFloat));
  int64_t start = 0; // of the part
  for (const BlockPart &part : parts) {
    const int64_t a = std::max(first, start), b = std::min(first + rows, start + part.rows);
    if (a < b)
      unpack_into(part, a - start, out.narrow(0, a - first, b - a));
    start += part.rows;
  }
  return out.to(type);
}

// The parts of the CPU's kernel, those of one order of columns at a time.
static void block_product_into(const Device &device, const at::Tensor &x,
                               const std::vector<BlockPart> &parts, const at::Tensor &y) {
  auto ordered = [](const BlockPart &p) { return p.order.defined(); };
  if (std::none_of(parts.begin(), parts.end(), ordered)) {
    device.block_linear(x, parts, y);
    return;
  }
  int64_t first = 0;
  at::Tensor order, reordered;
  for (size_t i = 0; i < parts.size();) {
    std::vector<BlockPart> some;
    int64_t rows = 0;
    const at::Tensor wanted = parts[i].order;
    for (; i < parts.size() && parts[i].order.is_same(wanted); i++) {
      some.push_back(parts[i]);
      rows += parts[i].rows;
    }
    if (!wanted.defined())
      reordered = x;
    else if (!order.is_same(wanted))
      reordered = x.index_select(1, wanted);
    order = wanted;
    if (rows == y.size(1)) {
      device.block_linear(reordered, some, y);
      return;
    }
    at::Tensor part = at::empty({x.size(0), rows}, y.options());
    device.block_linear(reordered, some, part);
    y.narrow(1, first, rows).copy_(part);
    first += rows;
  }
}

at::Tensor block_product(const at::Tensor &x, const at::Tensor &weight, bool exact) {
  const Device *device = device_for(x);
  const std::vector<BlockPart> &parts = *blocks_of(weight);
  // Numbers of 8 bits are widened for each row of x, so for many rows this is done once.
  const bool widens =
      x.size(0) > 8 &&
      std::any_of(parts.begin(), parts.end(), [](const BlockPart &p) { return p.kind == float8; });
  if (exact || widens || !device || !device->block_linear ||
      x.size(0) > (x.scalar_type() == at::kFloat ? device->limits.block_rows_float32
                                                 : device->limits.block_rows_16bit))
    return by_tiles(x, weight);
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  block_product_into(*device, x, parts, y);
  int64_t first = 0;
  for (const BlockPart &part : parts) { // the kernel leaves out what is not quantized
    if (part.kind == 0)
      y.narrow(1, first, part.rows).copy_(gemm(x, part.data.t()));
    first += part.rows;
  }
  return y;
}

at::Tensor block_linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
  TORCH_CHECK(x.dim() >= 1 && x.device() == weight.device() && x.is_floating_point() &&
                  x.size(-1) == weight.size(1),
              "linear: a weight in blocks ", weight.sizes(),
              " takes floating-point numbers [..., D] on ", weight.device(), ", not ", x.sizes(),
              " on ", x.device());
  const at::Tensor rows = x.reshape({-1, x.size(-1)}).to(weight.scalar_type()).contiguous();
  at::Tensor y = records_grad(x) ? BlockLinear::apply(rows, weight)
                                 : block_product(rows, weight, at::GradMode::is_enabled());
  if (bias.defined())
    y = records_grad(x, bias) ? y + bias : y.add_(bias);
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return y.view(shape).to(x.scalar_type());
}

at::Tensor block_gemm(const at::Tensor &dy, const at::Tensor &weight) {
  at::Tensor dx = at::zeros({dy.size(0), weight.size(1)}, dy.options());
  for_tiles(weight, [&](int64_t first, const at::Tensor &tile) {
    add_gemm(dx, dy.narrow(1, first, tile.size(0)), tile.to(dy.scalar_type()));
  });
  return dx;
}

at::Tensor block_embedding(const at::Tensor &weight, const at::Tensor &ids) {
  TORCH_CHECK(ids.device() == weight.device() && ids.scalar_type() == at::kLong,
              "embedding: a weight in blocks takes ids int64 on ", weight.device());
  const at::Tensor flat = ids.reshape({-1}).contiguous();
  const std::vector<BlockPart> &parts = *blocks_of(weight);
  if (weight.is_cuda()) {
    TORCH_CHECK(parts.size() == 1, "embedding: a weight in blocks on a GPU has one part");
    BlockPart some = parts[0];
    some.rows = flat.size(0);
    some.data = some.data.index_select(0, flat);
    some.scales = some.scales.index_select(0, flat);
    auto shape = ids.sizes().vec();
    shape.push_back(weight.size(1));
    return unpacked({some}, 0, some.rows, weight.scalar_type()).view(shape);
  }
  at::Tensor out = at::empty({flat.size(0), weight.size(1)}, flat.options().dtype(at::kFloat));
  const int64_t *id = flat.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < flat.size(0); i++) {
    TORCH_CHECK_INDEX(id[i] >= 0 && id[i] < weight.size(0), "embedding: id ", id[i],
                      " is outside the vocabulary of ", weight.size(0));
    int64_t row = id[i];
    size_t p = 0;
    for (; row >= parts[p].rows; p++)
      row -= parts[p].rows;
    unpack_into(parts[p], row, out.narrow(0, i, 1));
  }
  auto shape = ids.sizes().vec();
  shape.push_back(weight.size(1));
  return out.view(shape);
}

} // namespace conquer::ops

using namespace conquer;

int cq_block_weight(const cq_block_part *parts, int n, int64_t columns, cq_tensor *out) {
  return guarded([&] {
    std::vector<ops::BlockPart> all;
    for (int i = 0; i < n; i++) {
      const at::Tensor bytes = tensor_of(parts[i].data);
      ops::BlockPart part{parts[i].kind, bytes.size(0), columns, bytes};
      part.tile_rows = parts[i].tile_rows;
      part.tile_columns = parts[i].tile_columns;
      part.scales = tensor_of(parts[i].scales);
      part.order = tensor_of(parts[i].order);
      all.push_back(std::move(part));
    }
    return give(out, ops::make_blocks(std::move(all)));
  });
}

int cq_blocks_to_gpu(cq_tensor blocks, int device, int dtype, cq_tensor *out) {
  return guarded([&] {
    const auto *parts = ops::blocks_of(tensor_of(blocks));
    TORCH_CHECK(parts, "blocks: the tensor is not in blocks");
    const at::Device to(at::kCUDA, static_cast<at::DeviceIndex>(device));
    return give(out, ops::blocks_to_gpu(*parts, to, at::ScalarType(dtype)));
  });
}

int cq_blocks_rows(cq_tensor blocks, int64_t first, int64_t rows, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor t = tensor_of(blocks);
    const auto *parts = ops::blocks_of(t);
    TORCH_CHECK(parts, "rows: the tensor is not in blocks");
    TORCH_CHECK(first >= 0 && rows > 0 && first <= t.size(0) && rows <= t.size(0) - first,
                "rows: ", first, " to ", first + rows, " of ", t.size(0));
    return give(out, ops::blocks_rows(*parts, first, rows, t.scalar_type()));
  });
}

int64_t cq_blocks_bytes(cq_tensor t) {
  int64_t bytes = 0;
  if (const auto *parts = ops::blocks_of(tensor_of(t)))
    for (const ops::BlockPart &part : *parts)
      bytes += part.data.nbytes() + (part.scales.defined() ? part.scales.nbytes() : 0);
  return bytes;
}

int cq_blocks_unpack(cq_tensor blocks, int64_t first, int64_t rows, int dtype, cq_tensor *out) {
  return guarded([&] {
    const at::Tensor t = tensor_of(blocks);
    const auto *parts = ops::blocks_of(t);
    TORCH_CHECK(parts, "unpack: the tensor is not in blocks");
    TORCH_CHECK(first >= 0 && rows >= 0 && first <= t.size(0) && rows <= t.size(0) - first,
                "unpack: rows ", first, " to ", first + rows, " of ", t.size(0));
    return give(out, ops::unpacked(*parts, first, rows, at::ScalarType(dtype)));
  });
}
