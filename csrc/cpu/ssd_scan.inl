// ssd_scan.inl: the chunked scan of one head, forward and backward.
//
// The recurrence, for one head with scalar decay (Dao and Gu, arXiv 2405.21060; N state, P head
// dimension, u_t = dt_t·x_t):
//     h_t = exp(dt_t·A)·h_{t-1} + B_t ⊗ u_t          y_t = C_t·h_t + D·x_t
// For a block of Q tokens with s_t = A·(dt_1 + … + dt_t), H the state that enters it and H' the one
// that leaves:
//     y_t = Σ_{r≤t} exp(s_t - s_r)·(C_t·B_r)·u_r + exp(s_t)·C_t·H
//     H'  = exp(s_Q)·H + Σ_r exp(s_Q - s_r)·B_r ⊗ u_r
// These are three products for each block: [Q,Q]·[Q,P], [Q,N]·[N,P] and [N,Q]·[Q,P]. C·Bᵀ does not
// depend on the head and is computed once for a group. Operations for each token and head: 4·N·P
// for the states and Q·P for the block's lower triangle. A block of 64 spends a fifth on the
// triangle at N = 128 and keeps U, P, Y (16 KB each) and H (32 KB) in the second-level cache. x is
// read and y written once; B and C are read once for each head, from the outer caches.
//
// s is summed in double and kept as two floats, so that differences are accurate to a float's last
// bit: with A = -16 and long steps, s reaches thousands inside a block.
//
// The backward pass walks the blocks in reverse with dH', the gradient of the state that leaves.
// With L_tr = exp(s_t - s_r) for r ≤ t, P_tr = L_tr·(C_t·B_r) and M_tr = (dy_t·u_r)·P_tr:
//     du_r = Σ_t P_tr·dy_t + exp(s_Q - s_r)·B_r·dH'
//     dC_t += exp(s_t)·H·dy_t
//     dB_r += exp(s_Q - s_r)·dH'·u_r
//     d(C·Bᵀ) += L∘(dy·uᵀ)
//     dH = exp(s_Q)·dH' + Σ_t exp(s_t)·C_t ⊗ dy_t
// The gradient of a step's decay a_t = dt_t·A is a sum over all pairs (r before t, t' at or after
// t): suffix sums of M's row sums minus its column sums, suffix sums of exp(s_t)·dy_t·(C_t·H),
// prefix sums of u_r·(its gradient through H'), and exp(s_Q)·<H,dH'>. Row and column sums come from
// the same M, so they cancel exactly. The states that enter blocks are recomputed, one head at a
// time, which takes N/Q of x's size for each thread.

namespace state_space {

// Zeroed floats, aligned to a cache line. They come from the tensors' allocator and count as
// tensors do.
struct Floats {
  float *data = nullptr;
  Floats() = default;
  explicit Floats(size_t n) { allocate(n); }
  Floats(const Floats &) = delete;
  ~Floats() { give_scratch(data); }
  void allocate(size_t n) {
    give_scratch(data);
    data = nullptr;
    size_t bytes = (n * sizeof(float) + 63) / 64 * 64 + 64;
    data = static_cast<float *>(take_scratch(bytes));
    memset(data, 0, bytes);
  }
  operator float *() const { return data; }
};

// c[m, n] (+)= a[m, k] b[k, n], see gemm.inl.
inline void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                 const float *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  CONQUER_ISA::gemm(m, n, k, a, a_row, a_column, b, b_row, c, c_row, add);
}

// e^x as in vec.h, for a scalar, written so that the compiler vectorizes loops over it. Underflows
// to zero.
static inline __attribute__((always_inline)) float exp_fast(float x) {
  float in = x < -87.0f ? -87.0f : x;
  in = in > 88.0f ? 88.0f : in;
  float shifted =
      in * 1.44269504088896341f + 12582912.0f; // rounds to the nearest integer in the low bits
  float k = shifted - 12582912.0f;
  float r = (in - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  float e = p * scale;
  return x < -87.0f ? 0.0f : e;
}

static void transpose(int64_t rows, int64_t cols, const float *from, int64_t ld_from, float *to,
                      int64_t ld_to) {
  for (int64_t i = 0; i < rows; i += 8)
    for (int64_t j = 0; j < cols; j++)
      for (int64_t x = i; x < std::min(i + 8, rows); x++)
        to[j * ld_to + x] = from[x * ld_from + j];
}

static inline float dot(int64_t n, const float *a, const float *b) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++)
    sum += a[i] * b[i];
  return sum;
}

// The state that enters chunk c, if it comes only from the `size` chunks before:
//     Σ_{j=c-size}^{c-1} (α_{j+1}·…·α_{c-1})·S_j
// Chunks are in groups of `size`: the window is a suffix of one group and a prefix of the next (van
// Herk's algorithm for running extrema, with a linear recurrence instead of the maximum). The work
// for each chunk does not depend on size.
struct Window {
  int64_t size, n, filled = 0;
  Floats suffix, current, prefix, alpha;
  float passed = 1; // the decay of the prefix
  Window(int64_t size, int64_t n)
      : size(size), n(n), suffix(size * n), current(size * n), prefix(n), alpha(size) {}
  void query(float *out) const {
    const float *from = suffix + filled * n;
    for (int64_t i = 0; i < n; i++)
      out[i] = passed * from[i] + prefix[i];
  }
  void push(const float *s, float a) {
    float *to = current + filled * n;
    for (int64_t i = 0; i < n; i++) {
      to[i] = s[i];
      prefix[i] = a * prefix[i] + s[i];
    }
    passed *= a;
    alpha[filled++] = a;
    if (filled < size)
      return;
    float through = 1;
    for (int64_t j = size - 1; j >= 0; j--) {
      float *row = suffix + j * n;
      const float *own = current + j * n, *later = suffix + (j + 1) * n;
      for (int64_t i = 0; i < n; i++)
        row[i] = through * own[i] + (j + 1 < size ? later[i] : 0.0f);
      through *= alpha[j];
    }
    memset(prefix, 0, n * sizeof(float));
    passed = 1;
    filled = 0;
  }
};

// The decays of one block of one head.
struct Decays {
  int64_t n; // tokens that exist
  float hi[64], lo[64], in[64], out[64];
  // in[t]: from the entering state to token t; out[t]: from token t to the leaving state; through:
  // across the block.
  float through;
  const int32_t *segment;

  void set(const Scan &s, int64_t b, int64_t h, int64_t t0) {
    n = std::min(s.block, s.length - t0);
    const float *dt = s.dt + (b * s.heads + h) * s.length + t0;
    double sum = 0, a = s.a[h];
    for (int64_t t = 0; t < n; t++) {
      sum += a * dt[t];
      hi[t] = static_cast<float>(sum);
      lo[t] = static_cast<float>(sum - hi[t]);
    }
    for (int64_t t = 0; t < n; t++) {
      in[t] = exp_fast(hi[t]);
      out[t] = exp_fast((hi[n - 1] - hi[t]) + (lo[n - 1] - lo[t]));
    }
    through = in[n - 1];
    segment = s.segment ? s.segment + b * s.length + t0 : nullptr;
    if (!segment)
      return;
    int32_t before = t0 > 0 ? segment[-1] : segment[0], after = segment[n - 1];
    for (int64_t t = 0; t < n; t++) {
      if (segment[t] != before)
        in[t] = 0;
      if (segment[t] != after)
        out[t] = 0;
    }
    if (before != after)
      through = 0;
  }

  // l[r] = exp(s_t - s_r) for r ≤ t of the same sequence, else 0, up to `width`.
  void row(int64_t t, int64_t width, float *l) const {
    for (int64_t r = 0; r <= t; r++)
      l[r] = exp_fast((hi[t] - hi[r]) + (lo[t] - lo[r]));
    for (int64_t r = t + 1; r < width; r++)
      l[r] = 0;
    if (segment)
      for (int64_t r = 0; r <= t && segment[r] != segment[t]; r++)
        l[r] = 0;
  }
};

static void scale_rows(int64_t rows, int64_t cols, const float *by, const float *from, float *to) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < cols; i++)
      to[t * cols + i] = by[t] * from[t * cols + i];
}

static void cb_block(const Scan &s, int64_t b, int64_t g, float *cb) {
  int64_t q = s.block, ld = s.groups * s.state;
  Floats bt(s.state * q);
  for (int64_t k = 0; k < s.blocks; k++) {
    int64_t t0 = k * q, n = std::min(q, s.length - t0);
    const float *bm = s.b + ((b * s.length + t0) * s.groups + g) * s.state;
    const float *cm = s.c + ((b * s.length + t0) * s.groups + g) * s.state;
    if (n < q)
      memset(bt, 0, s.state * q * sizeof(float));
    transpose(n, s.state, bm, ld, bt, q);
    gemm(n, q, s.state, cm, ld, 1, bt, q, cb + k * q * q, q, false);
  }
}

// The state of one head along the blocks. `total` is the state that a block sees. If the window is
// finite, `own` is the part from the present chunk and `carried` the rest.
struct Carry {
  const Scan &s;
  int64_t pp, size; // P padded, N·P padded
  bool split;
  Floats total, own, carried;
  std::unique_ptr<Window> window;

  Carry(const Scan &s, int64_t pp)
      : s(s), pp(pp), size(s.state * pp), split(s.window > 0), total(size) {
    if (split) {
      own.allocate(size);
      carried.allocate(size);
      window = std::make_unique<Window>(s.window, size);
    }
  }
  void begin(int64_t b, int64_t h) {
    if (!s.initial || s.window == 0)
      return;
    transpose(s.head_dim, s.state, s.initial + (b * s.heads + h) * s.head_dim * s.state, s.state,
              total, pp);
    if (split)
      window->push(total, 1);
  }
  // Before block k: if a chunk begins there, sets the state that enters it and returns true.
  bool enter(int64_t k, float &chunk_decay) {
    if (k % s.chunk_blocks)
      return false;
    if (split) {
      if (k > 0)
        window->push(own, chunk_decay);
      window->query(total);
      memcpy(carried, total, size * sizeof(float));
      memset(own, 0, size * sizeof(float));
    } else if (s.window == 0) {
      memset(total, 0, size * sizeof(float));
    }
    chunk_decay = 1;
    return true;
  }
  // After a block with the weighted inputs wu [n,pp].
  void leave(const Decays &d, const float *bm, int64_t ld, const float *wu) {
    float *to = split ? own : total;
    for (int64_t i = 0; i < size; i++)
      to[i] *= d.through;
    gemm(s.state, pp, d.n, bm, 1, ld, wu, pp, to, pp, true);
    if (split)
      for (int64_t i = 0; i < size; i++) {
        carried[i] *= d.through;
        total[i] = carried[i] + own[i];
      }
  }
};

static void pack_u(const Scan &s, int64_t b, int64_t h, int64_t t0, int64_t n, int64_t pp,
                   float *u) {
  const float *x = s.x + ((b * s.length + t0) * s.heads + h) * s.head_dim;
  const float *dt = s.dt + (b * s.heads + h) * s.length + t0;
  for (int64_t t = 0; t < n; t++)
    for (int64_t p = 0; p < s.head_dim; p++)
      u[t * pp + p] = dt[t] * x[t * s.heads * s.head_dim + p];
}

static void forward_head(const Scan &s, const ScanOut &out, int64_t b, int64_t h) {
  int64_t q = s.block, p = s.head_dim, pp = pad16(p), n = s.state, g = h / (s.heads / s.groups);
  int64_t ld = s.groups * n, ldx = s.heads * p;
  Floats u(q * pp), wu(q * pp), y(q * pp), through(q * pp), weights(q * q);
  Carry carry(s, pp);
  carry.begin(b, h);
  Decays d;
  float chunk_decay = 1;
  for (int64_t k = 0; k < s.blocks; k++) {
    int64_t t0 = k * q, row = b * s.length + t0;
    d.set(s, b, h, t0);
    carry.enter(k, chunk_decay);
    chunk_decay *= d.through;
    pack_u(s, b, h, t0, d.n, pp, u);
    const float *cb = s.cb + ((b * s.groups + g) * s.blocks + k) * q * q;
    const float *bm = s.b + (row * s.groups + g) * n, *cm = s.c + (row * s.groups + g) * n;
    for (int64_t i = 0; i < d.n; i += 16) { // sixteen rows see no column beyond the diagonal's tile
      int64_t rows = std::min<int64_t>(16, d.n - i), width = std::min(i + 16, d.n);
      for (int64_t t = i; t < i + rows; t++) {
        float *l = weights + t * q;
        d.row(t, width, l);
        for (int64_t r = 0; r < width; r++)
          l[r] *= cb[t * q + r];
      }
      gemm(rows, pp, width, weights + i * q, q, 1, u, pp, y + i * pp, pp, false);
    }
    gemm(d.n, pp, n, cm, ld, 1, carry.total, pp, through, pp, false);
    const float *x = s.x + row * ldx + h * p;
    float *to = out.y + row * ldx + h * p, skip = s.d ? s.d[h] : 0;
    for (int64_t t = 0; t < d.n; t++)
      for (int64_t i = 0; i < p; i++)
        to[t * ldx + i] = y[t * pp + i] + d.in[t] * through[t * pp + i] + skip * x[t * ldx + i];
    scale_rows(d.n, pp, d.out, u, wu);
    carry.leave(d, bm, ld, wu);
  }
  transpose(n, p, carry.total, pp, out.final_ + (b * s.heads + h) * p * n, n);
}

// The gradient of chunk c's decay from pairs of chunks j < c < i at most `window` apart: c's decay
// times
//     Σ_a <the state added by chunk c-a, as it enters c; Σ_{b≤window-a} the gradient of chunk c+b,
//     as it leaves c>.
// A running sum over the boundaries would avoid the loop, but it keeps the rounding errors of large
// pairs after they left the window, and the remaining terms are small if states fade quickly.
static float passing(const Scan &s, int64_t c, int64_t chunks, int64_t size, const float *added,
                     const float *initial, const float *pulled, const float *decays,
                     float *gradient) {
  Floats fading(s.window); // [a]: from the end of chunk c-a to the beginning of c
  std::fill(fading.data, fading.data + s.window, 1.f);
  for (int64_t a = 2; a < s.window; a++)
    fading[a] = c - a + 1 >= 0 ? fading[a - 1] * decays[c - a + 1] : 0;
  memset(gradient, 0, size * sizeof(float));
  float sum = 0, back = 1;
  for (int64_t b = 1; b < s.window && c + b < chunks; b++) {
    const float *from = pulled + (c + b) * size;
    for (int64_t i = 0; i < size; i++)
      gradient[i] += back * from[i];
    back *= decays[c + b];
    const int64_t a = s.window - b;
    for (int64_t first = c + b + 1 < chunks ? a : 1, at = a; at >= first;
         at--) // at the end, all nearer chunks as well
      if (c - at >= -1 && fading[at] != 0)
        sum += fading[at] * dot(size, c - at >= 0 ? added + (c - at) * size : initial, gradient);
  }
  return sum * decays[c];
}

static void backward_head(const Scan &s, const ScanGrad &grad, const SliceGrad &slice, int64_t b,
                          int64_t h) {
  int64_t q = s.block, p = s.head_dim, pp = pad16(p), n = s.state, np = pad16(n),
          g = h / (s.heads / s.groups);
  int64_t ld = s.groups * n, ldx = s.heads * p, size = n * pp;
  int64_t chunks = (s.blocks + s.chunk_blocks - 1) / s.chunk_blocks;
  Floats u(q * pp), wu(q * pp), dy(q * pp), edy(q * pp), du(q * pp), dthrough(q * pp),
      transposed(pp * std::max(np, q)), weights(q * q), decay(q * q), products(q * q),
      rows_n(q * np);
  Decays d;

  // The states that enter the blocks, their part from the present chunk, and the total that each
  // chunk added.
  Floats entering(s.blocks * size), own, added, pulled, initial;
  bool split = s.window > 0;
  Floats chunk_decays(chunks);
  std::fill(chunk_decays.data, chunk_decays.data + chunks, 1.f);
  {
    Carry carry(s, pp);
    carry.begin(b, h);
    if (split) {
      own.allocate(s.blocks * size);
      added.allocate(chunks * size);
      pulled.allocate(
          chunks * size); // the gradient of the state that enters each chunk, from that chunk alone
      initial.allocate(size);
      memcpy(initial, carry.total, size * sizeof(float));
    }
    float chunk_decay = 1;
    for (int64_t k = 0; k < s.blocks; k++) {
      int64_t t0 = k * q;
      d.set(s, b, h, t0);
      carry.enter(k, chunk_decay);
      chunk_decay *= d.through;
      chunk_decays[k / s.chunk_blocks] = chunk_decay;
      memcpy(entering + k * size, carry.total, size * sizeof(float));
      if (split)
        memcpy(own + k * size, carry.own, size * sizeof(float));
      pack_u(s, b, h, t0, d.n, pp, u);
      scale_rows(d.n, pp, d.out, u, wu);
      carry.leave(d, s.b + ((b * s.length + t0) * s.groups + g) * n, ld, wu);
      if (split)
        memcpy(added + k / s.chunk_blocks * size, carry.own, size * sizeof(float));
    }
  }

  // dstate: the gradient of the state that leaves the block, from the rest of its chunk. dadded:
  // the gradient, from later chunks, of the part that this chunk added.
  Floats dstate(size), dadded, both;
  std::unique_ptr<Window> window;
  if (split) {
    dadded.allocate(size);
    both.allocate(size);
    window = std::make_unique<Window>(s.window, size);
  }
  if (grad.dfinal)
    transpose(p, n, grad.dfinal + (b * s.heads + h) * p * n, n, dstate, pp);
  double da = 0, dd = 0;
  float across = 0; // passing() of the present chunk
  for (int64_t k = s.blocks - 1; k >= 0; k--) {
    int64_t t0 = k * q, row = b * s.length + t0, chunk = k / s.chunk_blocks;
    d.set(s, b, h, t0);
    const float *x = s.x + row * ldx + h * p, *dt = s.dt + (b * s.heads + h) * s.length + t0;
    const float *bm = s.b + (row * s.groups + g) * n, *cm = s.c + (row * s.groups + g) * n;
    const float *cb = s.cb + ((b * s.groups + g) * s.blocks + k) * q * q;
    const float *state = entering + k * size;
    bool last_of_chunk = k + 1 == s.blocks || (k + 1) % s.chunk_blocks == 0;
    if (last_of_chunk && k + 1 < s.blocks && s.window >= 0)
      memset(dstate, 0, size * sizeof(float));
    if (split && last_of_chunk) {
      window->query(dadded);
      across = passing(s, chunk, chunks, size, added, initial, pulled, chunk_decays, both);
    }
    const float *leaving = dstate;
    if (split) {
      for (int64_t i = 0; i < size; i++)
        both[i] = dstate[i] + dadded[i];
      leaving = both;
    }

    pack_u(s, b, h, t0, d.n, pp, u);
    for (int64_t t = 0; t < d.n; t++)
      for (int64_t i = 0; i < p; i++)
        dy[t * pp + i] = grad.dy[(row + t) * ldx + h * p + i];
    scale_rows(d.n, pp, d.in, dy, edy);
    scale_rows(d.n, pp, d.out, u, wu);

    // Within the block: products = dy·uᵀ, then M.
    float rows[64] = {}, columns[64] = {};
    transpose(d.n, pp, u, pp, transposed, q);
    for (int64_t i = 0; i < d.n; i += 16) {
      int64_t m = std::min<int64_t>(16, d.n - i), width = std::min<int64_t>(i + 16, q);
      gemm(m, width, p, dy + i * pp, pp, 1, transposed, q, products + i * q, q, false);
      float *dcb = slice.dcb + k * q * q;
      for (int64_t t = i; t < i + m; t++) {
        float *l = decay + t * q, *w = weights + t * q, *m_row = products + t * q, sum = 0;
        d.row(t, q, l);
        for (int64_t r = 0; r < width; r++) {
          w[r] = l[r] * cb[t * q + r];
          dcb[t * q + r] += l[r] * m_row[r];
          m_row[r] *= w[r];
        }
        m_row[t] = 0; // a token's own term has no decay, and its rounding error would exceed the
                      // other terms
        for (int64_t r = 0; r < width; r++)
          columns[r] += m_row[r];
        for (int64_t r = width; r < q; r++)
          w[r] = 0;
        for (int64_t r = 0; r < width; r++)
          sum += m_row[r];
        rows[t] = sum;
      }
    }

    // du through the block (row r affects tokens r and later), then through the leaving state.
    for (int64_t r = 0; r < d.n; r += 16) {
      int64_t m = std::min<int64_t>(16, d.n - r);
      gemm(m, pp, d.n - r, weights + r * q + r, 1, q, dy + r * pp, pp, du + r * pp, pp, false);
    }
    gemm(d.n, pp, n, bm, ld, 1, leaving, pp, dthrough, pp, false);

    // dC through the entering state, dB through the leaving state.
    float enters[64], leaves[64];
    transpose(n, pp, state, pp, transposed, np);
    gemm(d.n, np, p, edy, pp, 1, transposed, np, rows_n, np, false);
    for (int64_t t = 0; t < d.n; t++) {
      float *to = slice.dc + (t0 + t) * np;
      for (int64_t i = 0; i < np; i++)
        to[i] += rows_n[t * np + i];
      enters[t] = dot(n, rows_n + t * np, cm + t * ld);
    }
    transpose(n, pp, leaving, pp, transposed, np);
    gemm(d.n, np, p, wu, pp, 1, transposed, np, rows_n, np, false);
    for (int64_t t = 0; t < d.n; t++) {
      float *to = slice.db + (t0 + t) * np;
      for (int64_t i = 0; i < np; i++)
        to[i] += rows_n[t * np + i];
      leaves[t] = dot(n, rows_n + t * np, bm + t * ld);
    }

    float pass = dot(size, state, dstate);
    if (split)
      pass += dot(size, own + k * size, dadded);
    pass = pass * d.through + across;
    double suffix = 0, prefix = 0, decays[64];
    for (int64_t t = d.n - 1; t >= 0; t--) {
      suffix += static_cast<double>(rows[t]) - columns[t] + enters[t];
      decays[t] = suffix + pass;
    }
    float skip = s.d ? s.d[h] : 0, *ddt = grad.ddt + (b * s.heads + h) * s.length + t0;
    for (int64_t t = 0; t < d.n; t++) {
      decays[t] += prefix;
      prefix += leaves[t];
      float *dx = grad.dx + (row + t) * ldx + h * p, along = 0;
      for (int64_t i = 0; i < p; i++)
        du[t * pp + i] += d.out[t] * dthrough[t * pp + i];
      along = dot(p, du + t * pp, x + t * ldx);
      dd += dot(p, dy + t * pp, x + t * ldx);
      for (int64_t i = 0; i < p; i++)
        dx[i] = dt[t] * du[t * pp + i] + skip * dy[t * pp + i];
      da += decays[t] * dt[t];
      ddt[t] = static_cast<float>(decays[t] * s.a[h]) + along;
    }

    // The gradient of the entering state.
    for (int64_t i = 0; i < size; i++)
      dstate[i] *= d.through;
    gemm(n, pp, d.n, cm, 1, ld, edy, pp, dstate, pp, true);
    if (split) {
      for (int64_t i = 0; i < size; i++)
        dadded[i] *= d.through;
      if (k % s.chunk_blocks == 0) {
        memcpy(pulled + chunk * size, dstate, size * sizeof(float));
        window->push(dstate, chunk_decays[chunk]);
      }
    }
  }
  grad.da[b * s.heads + h] = static_cast<float>(da);
  grad.dd[b * s.heads + h] = static_cast<float>(dd);
  if (grad.dinitial) {
    if (split)
      window->query(dstate);
    else if (s.window == 0)
      memset(dstate, 0, size * sizeof(float));
    transpose(n, p, dstate, pp, grad.dinitial + (b * s.heads + h) * p * n, n);
  }
}

static void finish_group(const Scan &s, const SliceGrad *slices, int count, int64_t b, int64_t g,
                         float *db, float *dc, int64_t stride) {
  int64_t q = s.block, n = s.state, np = pad16(n), ld = s.groups * n;
  Floats rows(q * np), dcb(q * q), rows_db(q * np), rows_dc(q * np);
  for (int64_t k = 0; k < s.blocks; k++) {
    int64_t t0 = k * q, m = std::min(q, s.length - t0);
    memset(dcb, 0, q * q * sizeof(float));
    memset(rows_db, 0, q * np * sizeof(float));
    memset(rows_dc, 0, q * np * sizeof(float));
    for (int i = 0; i < count; i++) {
      for (int64_t j = 0; j < q * q; j++)
        dcb[j] += slices[i].dcb[k * q * q + j];
      for (int64_t j = 0; j < m * np; j++) {
        rows_db[j] += slices[i].db[t0 * np + j];
        rows_dc[j] += slices[i].dc[t0 * np + j];
      }
    }
    auto pad = [&](const float *from) {
      for (int64_t t = 0; t < m; t++)
        memcpy(rows + t * np, from + t * ld, n * sizeof(float));
    };
    int64_t at = ((b * s.length + t0) * s.groups + g) * n;
    pad(s.b + at);
    gemm(m, np, m, dcb, q, 1, rows, np, rows_dc, np, true);
    pad(s.c + at);
    gemm(m, np, m, dcb, 1, q, rows, np, rows_db, np, true);
    for (int64_t t = 0; t < m; t++) {
      memcpy(db + (t0 + t) * stride, rows_db + t * np, n * sizeof(float));
      memcpy(dc + (t0 + t) * stride, rows_dc + t * np, n * sizeof(float));
    }
  }
}

} // namespace state_space
