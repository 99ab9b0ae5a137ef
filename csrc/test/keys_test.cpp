// keys_test.cpp: forms every key of a Triton kernel that a launch can ask for and compares them
// with the keys that were compiled. It needs no GPU.
//   csrc_keys_test KEYS [full]     KEYS: a manifest, or the output of `compile.py --list [--full]`
// Fails if a key is not in KEYS, or if a key in KEYS is never formed.
#include "../cuda/keys.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

using namespace conquer::triton;

namespace {

constexpr Dtype dtypes[] = {"bf16", "fp16", "fp32"};
constexpr bool flags[] = {false, true};

std::set<std::string> formed;
void add(const std::string &key) { formed.insert(key); }

// The operators of a transformer's blocks. float16 has no backward pass.
void transformer(Dtype dtype) {
  bool fp32 = is_fp32(dtype), trains = std::strcmp(dtype, "fp16") != 0;
  for (int64_t D = 16; D <= 8192; D += 16) { // the operators accept these widths
    add(keys::rms_norm(dtype, D));
    if (!fp32)
      add(keys::block_tail(dtype, D));
    for (bool wants_dweight : flags)
      if (trains)
        add(keys::rms_norm_grad(dtype, wants_dweight, D));
  }
  for (int64_t M = 1; M <= 64; M++)
    if (std::strcmp(dtype, "bf16") == 0)
      for (int form : {0, 1, 2})
        add(keys::tail_gemm(dtype, form == 1, form == 2, M));
  for (int64_t half = 16; half <= 128; half += 16) {
    add(keys::rope_qkv(dtype, half));
    if (trains)
      add(keys::rope_qkv_grad(dtype, half));
  }
  for (int64_t P = 16; P <= 128; P += 16) {
    for (bool many : flags)
      add(keys::decode_attention(dtype, many, P));
    add(keys::decode_attention_mha(dtype, P));
  }
  for (int64_t V : {32000, 50257})
    for (bool grad : flags)
      if (trains || !grad)
        add(keys::cross_entropy(dtype, grad, V));
  for (bool norm : flags) {
    for (int64_t M : tuning::gemv_M)
      add(keys::gemv(dtype, M, norm));
    for (int64_t M : tuning::gemv_swiglu_M)
      add(keys::gemv_swiglu(dtype, M, norm));
  }
  if (!fp32) {
    add(keys::grouped_gemv(dtype));
    for (int64_t rows : tuning::grouped_gemm_BM)
      for (bool across : flags)
        if (trains || !across)
          add(keys::grouped_gemm(dtype, across, rows));
    if (trains)
      add(keys::grouped_grad_weight(dtype));
  }
  for (int bits : {4, 8}) {
    for (int64_t M = 2; M <= 64 && !fp32; M++)
      add(keys::block_gemm(dtype, bits, M));
    add(keys::block_unpack(dtype, bits));
    add(keys::block_gemv_swiglu(dtype, bits));
    for (int64_t rows : {16, 32000})
      add(keys::block_gemv(dtype, bits, rows));
  }
  for (auto form :
       {keys::swiglu, keys::split_k_gemm, keys::sum_splits, keys::sum_splits_swiglu, keys::argmax})
    add(form(dtype));
  if (trains) {
    for (auto form : {keys::swiglu_grad, keys::add_rows, keys::multiply})
      add(form(dtype));
    // Of bfloat16 weights, with float32 master weights or rounded stochastically.
    for (bool master : flags)
      if (!(fp32 && master)) {
        add(keys::adamw(dtype, master, true));
        add(keys::adamw_8bit(dtype, master));
      }
    add(keys::adamw(dtype, !fp32, false));
  }
}

// The chunked scan. The plain set has head dimension 64, state 128, aligned rows, and chunks of at
// least one block.
void scan(Dtype dtype, bool full) {
  std::vector<int64_t> dims = {64}, states = {128}, chunks = {64, 128, 256};
  if (full) {
    for (dims = {}; dims.size() < 128;)
      dims.push_back(dims.size() + 1);
    for (states = {}; states.size() < 256;)
      states.push_back(states.size() + 1);
    chunks.insert(chunks.end(), {16, 32});
  }
  std::set<int64_t> blocks;
  for (int64_t window : {-1, 0, 1, 3})
    for (int64_t chunk : chunks)
      blocks.insert(keys::scan_block(dtype, window, chunk));
  for (int64_t Q : blocks)
    for (int64_t P : dims)
      for (int64_t N : states)
        for (bool unaligned : {false, full}) {
          bool mask = unaligned || power_of_two(P) != P || power_of_two(N) != N;
          keys::Scan s = {dtype, Q, P, N, mask};
          for (bool segments : flags) {
            for (bool other : flags) {
              for (bool keep : flags)
                add(s.prepare(segments, other, keep));
              add(s.scan(segments, other));
              if (s.fits_hopper())
                add(s.scan_hopper(segments, other));
              add(s.grad_x(segments, other));
            }
            add(s.grad_cb(segments));
          }
          for (bool softplus : flags)
            for (bool fixes : flags)
              add(s.grad_dt(softplus, fixes));
          for (bool reverse : flags)
            add(s.carry_state(reverse, false, false));
          for (bool entry : flags)
            add(s.carry_state(false, entry, true));
          add(s.cb_gemm());
          add(s.grad_bc());
          add(s.grad_bc_sum());
        }
  for (bool reverse : flags)
    for (bool initial : flags)
      add(keys::state_passing(reverse, initial));
}

// The other operators of a Mamba-2 layer. The plain set has convolutions of width 4 with SiLU,
// state 128, and widths that are multiples of 16.
void around_scan(Dtype dtype, bool full) {
  std::vector<int64_t> widths = {4}, states = {128}, dims = {64}, groups;
  if (full) {
    widths = {2, 3, 4};
    states = {10, 16, 24, 32, 50, 64, 100, 128, 200, 256};
    dims = {16, 24, 64, 128};
  }
  for (int64_t width : widths)
    for (bool silu : flags)
      for (bool segments : flags)
        for (bool unaligned : {false, full}) {
          if (!silu && !full)
            continue;
          for (bool initial : flags) {
            add(keys::conv(dtype, silu, width, initial, segments, unaligned));
            add(keys::conv_grad_pre(dtype, silu, width, initial, segments, unaligned));
          }
          add(keys::conv_grad_x(dtype, width, segments, unaligned));
          add(keys::conv_step(dtype, silu, width));
        }
  for (int64_t step = full ? 1 : 16, group = step; group <= (full ? 16384 : 8192); group += step)
    for (bool z : flags) {
      add(keys::gated_norm(dtype, z, group, group));
      add(keys::gated_norm_grad(dtype, z, group, group));
    }
  std::vector<Dtype> others = {"fp32"};
  if (!is_fp32(dtype))
    others.push_back(dtype);
  for (Dtype state : others)
    for (Dtype params : others)
      for (bool z : flags)
        for (bool softplus : flags)
          for (bool log_a : flags)
            for (int64_t rows : tuning::state_step_BP)
              for (int64_t P : dims)
                for (int64_t N : states)
                  if (rows == tuning::state_step_BP.front() || P % rows == 0)
                    add(keys::state_step(dtype, state, params, z, softplus, log_a, rows, P, N));
}

void replay(bool full) {
  for (int64_t N : full ? std::vector<int64_t>{64, 128} : std::vector<int64_t>{128})
    for (Dtype dtype : {"bf16", "fp32"}) {
      add(keys::replay_inputs(dtype, N));
      for (bool z : flags)
        add(keys::replay_state(dtype, z, N));
    }
}

std::set<std::string> read_keys(const char *path) {
  std::set<std::string> keys;
  std::ifstream file(path);
  std::string line, key;
  while (std::getline(file, line))
    if (std::istringstream(line) >> key)
      keys.insert(key);
  return keys;
}

int report(const std::set<std::string> &keys, const std::set<std::string> &among,
           const char *problem) {
  int count = 0;
  for (const std::string &key : keys)
    if (!among.count(key) && ++count <= 20)
      std::printf("FAIL %s %s\n", key.c_str(), problem);
  return count;
}

} // namespace

int main(int argc, char **argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: csrc_keys_test KEYS [full]\n");
    return 2;
  }
  bool full = argc > 2 && std::strcmp(argv[2], "full") == 0;
  for (Dtype dtype : dtypes) {
    transformer(dtype);
    scan(dtype, full);
    around_scan(dtype, full);
  }
  replay(full);
  std::set<std::string> compiled = read_keys(argv[1]);
  int failures = report(formed, compiled, "is asked for and was not compiled");
  failures += report(compiled, formed, "was compiled and is never asked for");
  std::printf("%zu keys formed, %zu compiled, %d failures\n", formed.size(), compiled.size(),
              failures);
  return failures > 0;
}
