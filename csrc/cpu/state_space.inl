// state_space.inl: the operations around the scan that work row by row (one token's state update,
// the causal convolution, the gated RMS norm), and the table of all state-space kernels.

namespace state_space {

static void step_head(int64_t p, int64_t n, float decay, float dt, float d, const float *x,
                      const float *b, const float *c, float *state, float *y) {
  for (int64_t i = 0; i < p; i++) {
    float u = dt * x[i], sum = 0, *row = state + i * n;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
      row[j] = decay * row[j] + u * b[j];
      sum += row[j] * c[j];
    }
    y[i] = sum + d * x[i];
  }
}

static inline __attribute__((always_inline)) float sigmoid(float v) {
  return 1.0f / (1.0f + exp_fast(-v));
}

static void conv_rows(int64_t t0, int64_t t1, int64_t dim, int64_t width, const float *x,
                      const float *weight, const float *bias, const float *history,
                      const int32_t *segment, bool silu, float *y, float *pre) {
  for (int64_t t = t0; t < t1; t++) {
    float *out = y + t * dim;
    for (int64_t i = 0; i < dim; i++)
      out[i] = bias ? bias[i] : 0.0f;
    for (int64_t k = 0; k < width; k++) {
      int64_t from = t - (width - 1) + k;
      const float *row = from >= 0 ? x + from * dim
                         : history ? history + (from + width - 1) * dim
                                   : nullptr;
      if (!row || (segment && segment[std::max<int64_t>(from, 0)] != segment[t]))
        continue;
      const float *w = weight + k * dim;
      for (int64_t i = 0; i < dim; i++)
        out[i] += w[i] * row[i];
    }
    if (pre)
      memcpy(pre + t * dim, out, dim * sizeof(float));
    if (silu)
      for (int64_t i = 0; i < dim; i++)
        out[i] *= sigmoid(out[i]);
  }
}

static void gate_row(int64_t n, const float *z, float *y) {
  for (int64_t i = 0; i < n; i++)
    y[i] *= z[i] * sigmoid(z[i]);
}

static void silu_grad(int64_t n, const float *pre, const float *dy, float *dpre) {
  for (int64_t i = 0; i < n; i++) {
    float g = sigmoid(pre[i]);
    dpre[i] = dy[i] * g * (1.0f + pre[i] * (1.0f - g));
  }
}

static void norm_row(int64_t dim, int64_t group, float eps, const float *x, const float *z,
                     const float *weight, float *y) {
  for (int64_t at = 0; at < dim; at += group) {
    float sum = 0;
    for (int64_t i = at; i < at + group; i++)
      y[i] = z ? x[i] * z[i] * sigmoid(z[i]) : x[i];
#pragma omp simd reduction(+ : sum)
    for (int64_t i = at; i < at + group; i++)
      sum += y[i] * y[i];
    float r = 1.0f / std::sqrt(sum / group + eps);
    for (int64_t i = at; i < at + group; i++)
      y[i] *= r * weight[i];
  }
}

// With v = x·silu(z), r = 1/rms(v), e = dy·weight: dv = r·e - v·r³·mean(e·v).
static void norm_grad_row(int64_t dim, int64_t group, float eps, const float *x, const float *z,
                          const float *weight, const float *dy, float *dx, float *dz,
                          float *dweight) {
  for (int64_t at = 0; at < dim; at += group) {
    float sum = 0, along = 0;
    for (int64_t i = at; i < at + group; i++)
      dx[i] = z ? x[i] * z[i] * sigmoid(z[i]) : x[i];
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = at; i < at + group; i++) {
      sum += dx[i] * dx[i];
      along += dx[i] * dy[i] * weight[i];
    }
    float r = 1.0f / std::sqrt(sum / group + eps), pull = r * r * r * along / group;
    for (int64_t i = at; i < at + group; i++) {
      float v = dx[i], dv = r * dy[i] * weight[i] - v * pull;
      dweight[i] += dy[i] * v * r;
      if (z) {
        float s = sigmoid(z[i]);
        dz[i] = dv * x[i] * s * (1.0f + z[i] * (1.0f - s));
        dv *= z[i] * s;
      }
      dx[i] = dv;
    }
  }
}

static const StateSpaceKernels table = {cb_block,  forward_head, backward_head, finish_group,
                                        step_head, gate_row,     conv_rows,     silu_grad,
                                        norm_row,  norm_grad_row};

} // namespace state_space
