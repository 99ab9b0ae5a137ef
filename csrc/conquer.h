/* conquer.h: the functions of the project's C++ that the Go packages call through cgo. Go calls the
 * rest of libtorch through gotch's C layer. torch/cgo.go has a version number: change it when a
 * declaration of this file changes.
 *
 * Conventions
 *   - cq_tensor is an at::Tensor*, the same handle as in gotch's C layer.
 *   - A function that can fail returns 0 on success and 1 on failure. cq_last_error() then returns
 *     the reason, for the calling thread, until its next failure.
 *   - A tensor returned through an `out` pointer belongs to the innermost open scope of the calling
 *     thread.
 *   - Tensor arguments are required unless the description says "or NULL".
 *   - Shapes: B batch, L sequence, H query heads, K key/value heads, P head dimension, N state, G
 *     groups, D model width, F feed-forward width, V vocabulary.
 *   - dtypes are c10::ScalarType numbers. A device is -1 for the CPU, else the index of a CUDA
 *     device.
 */
#ifndef CONQUER_H
#define CONQUER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *cq_tensor;

/* ---- errors ---- */

/* The message of the calling thread's last failure, valid until its next failure; owned by the
 * library. */
const char *cq_last_error(void);

/* ---- scopes: deterministic freeing of tensor handles (runtime/scope.cpp) ---- */

/* Opens a scope on the calling thread. Tensors created afterwards belong to it. */
void cq_scope_open(void);
/* Closes the innermost scope and frees its tensors. */
void cq_scope_close(void);
/* Adds a new handle (from gotch) to the innermost scope. Fails if no scope is open; the handle is
 * then freed. */
int cq_scope_adopt(cq_tensor t);
/* Moves a handle from the innermost scope to the enclosing one. Fails if the innermost scope does
 * not hold it, or if no scope encloses it. */
int cq_scope_keep(cq_tensor t);
/* Removes a handle from all scopes; the caller frees it with cq_tensor_free. Fails if no open scope
 * holds it. */
int cq_scope_release(cq_tensor t);
/* Frees a released handle. */
void cq_tensor_free(cq_tensor t);
/* The number of handles in this process, over all threads; for leak tests. */
int64_t cq_live_tensors(void);
/* The number of open scopes of the calling thread. */
int cq_scope_depth(void);

/* ---- tensors ---- */

/* Rank, dtype, device and the sizes of t, the latter for at most `room` dimensions. */
void cq_tensor_describe(cq_tensor t, int *rank, int *dtype, int *device, int64_t *sizes, int room);
/* Copies t's elements in row-major order to `data`. Fails if their size is not `bytes`. */
int cq_tensor_read(cq_tensor t, void *data, size_t bytes);
/* Views of t, cut along dim into n parts of the given sizes. Their gradients are joined in one
 * copy. */
int cq_split(cq_tensor t, int64_t dim, const int64_t *sizes, int n, cq_tensor *out);
/* A copy of a CPU tensor on a GPU, without a gradient. It is queued on the device and not waited
 * for. */
int cq_upload(cq_tensor t, int device, cq_tensor *out);
/* A new CPU tensor with a copy of `data`. */
int cq_tensor_from(const void *data, size_t bytes, const int64_t *sizes, int rank, int dtype,
                   cq_tensor *out);

/* A file mapped into memory privately: writing to a view changes this process's copy of the page
 * only. The mapping lives until it is closed and the last tensor that views it is freed. */
typedef struct cq_mapping cq_mapping;
int cq_map_open(const char *path, cq_mapping **out, const uint8_t **data, size_t *bytes);
void cq_map_close(cq_mapping *map);
/* A tensor that views the mapping from byte `offset` on. */
int cq_map_tensor(cq_mapping *map, size_t offset, const int64_t *sizes, int rank, int dtype,
                  cq_tensor *out);

/* Nanoseconds of one addition and its scope without Go, averaged over n: the baseline of Go's
 * overhead. */
double cq_time_add(cq_tensor a, cq_tensor b, int64_t n);

/* ---- autograd and randomness ---- */

/* Adds the gradient of sum_i <outputs_i, seeds_i> to each input's .grad, or to that of every leaf
 * if n_inputs is 0. A seed may be NULL for a scalar output and is then one. */
int cq_backward(const cq_tensor *outputs, const cq_tensor *seeds, int n, const cq_tensor *inputs,
                int n_inputs, int keep_graph);
/* Switches gradient recording on the calling thread and returns the previous setting. */
int cq_set_grad_enabled(int on);
/* Removes t's .grad. */
void cq_clear_grad(cq_tensor t);
/* Sets t's .grad to grad, sharing storage. */
int cq_set_grad(cq_tensor t, cq_tensor grad);
/* Makes t share src's storage, shape and dtype. For autograd t stays the same leaf. */
int cq_set_data(cq_tensor t, cq_tensor src);
/* Seeds the generators of all devices. */
int cq_manual_seed(int64_t seed);
/* The state of the default generator of a device, as a uint8 CPU tensor. */
int cq_rng_state(int device, cq_tensor *out);
int cq_set_rng_state(int device, cq_tensor state);

/* Recomputation of results that are cheap to compute (runtime/recompute.cpp): those of cq_rms_norm,
 * cq_swiglu, cq_causal_conv1d and cq_gated_rms_norm, alone or inside a fused linear layer. Between
 * cq_drop_begin and cq_drop_end the calling thread records how each is computed. cq_drop_end frees
 * the memory of those that a backward pass will read, except memory that `kept` (or NULL) shares.
 * Before such a backward pass cq_dropped_restore recomputes them, bit for bit. */
typedef struct cq_dropped cq_dropped;
int cq_drop_begin(void);
int cq_drop_end(cq_tensor kept, cq_dropped **out);
int cq_dropped_restore(cq_dropped *dropped);
void cq_dropped_free(cq_dropped *dropped);

/* The number of threads that an operation on the CPU may use. */
void cq_set_threads(int n);
int cq_threads(void);

/* The bytes that CPU tensors and kernels hold now, without views of mapped files, and the maximum
 * since the last reset. */
void cq_cpu_memory(int64_t *now, int64_t *most);
void cq_cpu_reset_peak(void);

/* The time of each operation on the calling thread between begin and end, without the operations
 * inside it, under libtorch's name or conquer::<function of this header without cq_>. On a CUDA
 * device the host waits before and after each operation, so that its time is measured alone (-1:
 * the CPU). cq_profile_entry returns the i'th entry, in no particular order, and fails past the
 * last. */
int cq_profile_begin(int device);
void cq_profile_end(void);
int cq_profile_entry(int i, const char **name, double *seconds, int64_t *calls);

/* ---- optimizer steps ---- */

/* A parameter and the optimizer's state for it, tensors of one shape on one device. */
typedef struct {
  cq_tensor weight, gradient;
  cq_tensor master;       /* float32 master weights, or NULL */
  cq_tensor mean, square; /* first and second moments; Lion has no second */
  cq_tensor exponents;    /* of 8-bit moments, else NULL */
  double decay;           /* weight decay */
} cq_parameter;

typedef struct {
  int64_t step; /* counted from 1 */
  double scale; /* factor of the gradients */
  double rate, beta1, beta2, eps;
  int64_t seed; /* of the stochastic rounding */
} cq_adamw_options;

/* One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) over n parameters of one device, in
 * place. Master weights are updated and the weight is rounded from them; a float32 weight is its
 * own master. Moments may be smaller than float32: bfloat16, or uint8 with exponents, uint8 [2,
 * ceil(elements/256)]. These are rounded stochastically, so that an update smaller than a rounding
 * step still happens with the right probability. Without master weights the weight is bfloat16 and
 * rounded stochastically too, and the moments are of the smaller kinds. All parameters have the
 * same kinds of state. */
int cq_adamw(const cq_parameter *parameters, int n, const cq_adamw_options *options);
/* An 8-bit moment is a float with 3 bits of mantissa whose exponents count down from the largest of
 * each 256 elements: means (which = 0) have a sign and 15 octaves, squares (which = 1) no sign and
 * 31 octaves. cq_moment_unpack gives the values as bfloat16, which holds them exactly.
 * cq_moment_pack rounds to nearest, so unpacked values pack to the same codes. exponents belongs to
 * the parameter. */
int cq_moment_unpack(cq_tensor codes, cq_tensor exponents, int which, cq_tensor *out);
int cq_moment_pack(cq_tensor values, cq_tensor codes, cq_tensor exponents, int which);
/* One step of Lion (Chen et al., arXiv 2302.06675). Master weights are required; means have
 * float32. */
int cq_lion(const cq_parameter *parameters, int n, double scale, double rate, double beta1,
            double beta2);
int cq_lion_reference(const cq_parameter *parameters, int n, double scale, double rate,
                      double beta1, double beta2);
/* The 2-norm of all elements of n tensors of one device. */
int cq_global_norm(const cq_tensor *tensors, int n, double *out);

/* ---- attention ---- */

/* Scaled dot-product attention with grouped queries: q [B,H,L,P], k and v [B,K,S,P] with K dividing
 * H. mask is NULL, boolean, or of q's dtype, and broadcastable to [B,H,L,S]. With causal, query i
 * sees keys 0 to i. scale 0 means 1/sqrt(P). On the CPU the project's kernels (cpu/attention.cpp)
 * run if P is a multiple of 16, without dropout and without an additive mask; rows that see no key
 * are then zero. Otherwise libtorch's run. */
int cq_sdpa(cq_tensor q, cq_tensor k, cq_tensor v, cq_tensor mask, double dropout, int causal,
            double scale, cq_tensor *out);

/* ---- kernels ---- */

/* Operators with kernels of the project (ops/, cpu/, cuda/). Elements are float32, bfloat16 or
 * float16; sums are float32. Gradients are recorded if an input requires one. cq_x_reference is the
 * same function written with libtorch alone: it runs where a device has no kernel, and tests
 * compare the kernels with it. */

/* x [..., D] times weight [N,D] transposed, plus bias [N] (or NULL): [..., N]. On the CPU up to 8
 * rows (16 in float32) without gradients read the weight at memory speed; more rows are a GEMM of
 * oneDNN (ops/gemm.cpp). */
int cq_linear(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out);
int cq_linear_reference(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out);

/* Rows of a weight in quantized blocks. kind is ggml's number of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K
 * to Q6_K, IQ4_NL, IQ4_XS or MXFP4; 256 to 259 for codes of 4 bits in blocks of 32 and 128 and
 * codes of 8 bits in the same (csrc/cpu/blocks.h); 260 for numbers of 8 bits with four of exponent;
 * or 0. data is uint8 [rows, bytes of a row] on the CPU, which is not copied; float32 [rows,D] of
 * kind 0. Of kind 260, scales is float32, one for each tile of the rows. order, int64 [D] or NULL,
 * says that column i of data is column order[i] of the weight. */
typedef struct {
  int kind;
  cq_tensor data, scales, order;
  int64_t tile_rows, tile_columns;
} cq_block_part;
/* Row i of x [N,D] times the weight of its group: weight [count*R,D], of which group g has the rows
 * from g*R on, and index int64 [N], ascending, give [N,R], with gradients. *out is NULL if the
 * device has no kernels for these tensors: on the CPU, in float32, for widths that are no multiples
 * of 16, for weights in blocks. */
int cq_grouped_linear(cq_tensor x, cq_tensor weight, cq_tensor index, int64_t count,
                      cq_tensor *out);
/* A weight that stays in blocks, of n parts below each other. The result
 * is a tensor [N,D] with D = columns, float32 by its dtype, which stands for a weight in cq_linear
 * and the operators that contain it, cq_embedding, cq_cross_entropy_head and their references; any
 * other operation fails. While gradient recording is off (cq_set_grad_enabled), cq_linear rounds
 * activations to 8 bits in blocks of 32 (float32 scales) and sums products of integers; with kind
 * 260 it does not round them. While it is on, cq_linear multiplies in float32, and only x gets a
 * gradient. */
int cq_block_weight(const cq_block_part *parts, int n, int64_t columns, cq_tensor *out);
/* A weight in blocks in the form that a GPU's kernels read, of the dtype of the activations: codes
 * of 4 bits with a scale and a minimum in float16 for each 32 numbers (Q4_0, Q4_1, Q4_K), of 8 bits
 * for each 16 (all other kinds). Fails if there are no kernels for the GPU, and for kind 260 and
 * parts with an order. */
int cq_blocks_to_gpu(cq_tensor blocks, int device, int dtype, cq_tensor *out);
/* Rows [first, first + rows) of a weight in blocks, which share its memory. */
int cq_blocks_rows(cq_tensor blocks, int64_t first, int64_t rows, cq_tensor *out);
/* The bytes of a weight in blocks, 0 for any other tensor. */
int64_t cq_blocks_bytes(cq_tensor t);
/* The values of rows [first, first + rows) of a weight in blocks, exactly as ggml defines them,
 * rounded to dtype. */
int cq_blocks_unpack(cq_tensor blocks, int64_t first, int64_t rows, int dtype, cq_tensor *out);

/* The matrix product over the last two dimensions, and that of a [M,K] and b [K,N] added to into
 * [M,N] in place. */
int cq_matmul(cq_tensor a, cq_tensor b, cq_tensor *out);
int cq_add_matmul(cq_tensor into, cq_tensor a, cq_tensor b);

/* residual [..., N] plus cq_linear. */
int cq_linear_add(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor residual,
                  cq_tensor *out);
/* cq_linear of cq_rms_norm of x with norm [D]. */
int cq_norm_linear(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                   cq_tensor *out);
/* residual [..., N] plus cq_norm_linear. */
int cq_norm_linear_add(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                       cq_tensor residual, cq_tensor *out);
/* cq_swiglu of cq_norm_linear with weight [2F,D], gate first: [..., F]. */
int cq_norm_linear_swiglu(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias,
                          cq_tensor *out);

/* A block tail and the next block's input projection, of the block's input x [..., D] and its
 * mixer's result mixed [..., A]:
 *   z = x + output rms_norm(mixed)
 *   y = z + down swiglu(gate_up rms_norm(z))
 *   *out_next = next rms_norm(y)
 * with output [D,A], gate_up [2F,D] (gate first), down [D,F] and next [N,D]. norm [A] may be NULL
 * (mixed is then not normalized), and so may each bias and next (then *out_next is NULL). A
 * GPU does this for up to 64 rows without gradients in fused kernels (a Hopper GPU in one kernel
 * for a single row), and *unfused_reason is NULL. Otherwise the operators above run one after the
 * other, and *unfused_reason is the reason, valid until this thread's next call. */
typedef struct {
  cq_tensor norm, output, output_bias, mlp_norm, gate_up, gate_up_bias, down, down_bias, next_norm,
      next, next_bias;
  double eps, mlp_eps, next_eps;
} cq_tail;
int cq_block_tail(cq_tensor x, cq_tensor mixed, const cq_tail *tail, cq_tensor *out,
                  cq_tensor *out_next, const char **unfused_reason);

/* x [..., D] divided by its root mean square, times weight [D], with the rounding of Hugging Face's
 * LlamaRMSNorm. */
int cq_rms_norm(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out);
int cq_rms_norm_reference(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out);

/* Rotary position embedding in Hugging Face's half-split convention, with the transposition to
 * attention's layout: the heads of a fused projection qkv [B,L,(H+2K)P] become q [B,H,L,P], k and v
 * [B,K,L,P]; v is not rotated. cos and sin are float32 [B or 1, L, R/2], one entry for each angle
 * (not Hugging Face's doubled table). The first R <= P elements of a head rotate, the others are
 * copied. Computed in float32 and rounded once. The backward pass returns one gradient for qkv and
 * none for cos and sin. */
int cq_rope_qkv(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin,
                cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out);
int cq_rope_qkv_reference(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos,
                          cq_tensor sin, cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out);

/* cq_rope_qkv that writes k and v in place into caches [B,K,S,P], at the positions columns (int64
 * [B or 1, L]). k and v get no gradients. */
int cq_rope_qkv_cache(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor columns,
                      cq_tensor k_cache, cq_tensor v_cache, cq_tensor *q_out);

/* gate_up [..., 2F], gate first: silu(gate) * up [..., F]. */
int cq_swiglu(cq_tensor gate_up, cq_tensor *out);
int cq_swiglu_reference(cq_tensor gate_up, cq_tensor *out);

/* Attention of one new position of each sequence to a static cache. First cq_rope_qkv_cache writes
 * the keys and values of qkv [B,1,(H+2K)P] at the positions lengths - 1. Then the queries attend to
 * the positions from starts[b] (0 if starts is NULL) to lengths[b] - 1; no others are read. The
 * result is out [B,1,HP]. The caches are [B,K,S,P], contiguous in P, with K dividing H; cos and sin
 * are as in cq_rope_qkv; lengths and starts are int64 [B]. If gradients are recorded, the reference
 * runs. */
typedef struct {
  cq_tensor qkv;
  int64_t heads;
  cq_tensor cos, sin, k_cache, v_cache, lengths, starts;
  double scale;
} cq_decode;
int cq_decode_attention(const cq_decode *arguments, cq_tensor *out);
int cq_decode_attention_reference(const cq_decode *arguments, cq_tensor *out);
/* cache[b,:,positions[b,l],:] = fresh[b,:,l,:] in place. cache is [B,K,S,P], fresh [B,K,L,P] and
 * positions int64 [B or 1, L]. A cache may also be in 8 bits, on the CPU, here and in
 * cq_rope_qkv_cache and cq_decode_attention: uint8 [B,K,S,P/32*34], in which 32 numbers of a head
 * are a float16 scale and 32 levels, as in a block of Q8_0. */
int cq_cache_write(cq_tensor cache, cq_tensor fresh, cq_tensor positions);
/* The values of a cache in 8 bits, as dtype: [B,K,S,P]. */
int cq_cache_unpack(cq_tensor cache, int dtype, cq_tensor *out);
int cq_cache_write_reference(cq_tensor cache, cq_tensor fresh, cq_tensor positions);

/* The language model head and its loss, some rows at a time: hidden [N,D], weight [V,D], labels
 * int64 [N] (-100: not counted). With the logits x = hidden weight^T of a row, its label y, lse =
 * log sum exp x, s = label_smoothing, and w its entry in row_weights (float32 [N], no gradient; 1
 * if NULL), the row's loss is
 *   w ((1 - s) (lse - x_y) + s (lse - mean x) + z_loss lse^2)
 * out_loss is a float32 scalar: the sum over counted rows divided by `divisor`, or by their number
 * if divisor is 0 (with no counted row the loss is 0). out_nll (or NULL) is float32 [N] without a
 * gradient: lse - x_y, without the options' terms, and 0 where not counted. The forward pass
 * computes the gradients (the weight's only if it requires one), so the result allows one backward
 * pass only. */
typedef struct {
  double divisor, label_smoothing, z_loss;
} cq_loss;
int cq_cross_entropy_head(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                          cq_tensor row_weights, const cq_loss *loss, cq_tensor *out_loss,
                          cq_tensor *out_nll);
int cq_cross_entropy_head_reference(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                                    cq_tensor row_weights, const cq_loss *loss, cq_tensor *out_loss,
                                    cq_tensor *out_nll);

/* The rows ids (int64, any shape) of weight [V,D]. The backward pass adds the rows' gradients in
 * place to weight.grad if it exists, else it returns a dense gradient. So gradients must accumulate
 * into .grad, as those of cq_backward do. */
int cq_embedding(cq_tensor weight, cq_tensor ids, cq_tensor *out);
int cq_embedding_reference(cq_tensor weight, cq_tensor ids, cq_tensor *out);

/* The next token of each row of logits [B,V]: int64 [B], -1 where a logit is NaN. The filters are
 * those of transformers, in its order: repetition penalty for the tokens marked in seen (bool
 * [B,V], or NULL); temperature (0: argmax, the first among equals); top-k (0: off; ties with the
 * k-th stay); top-p (0 or 1: off); min-p (0: off). uniform (float64 [B], from [0,1); unused if
 * temperature is 0) selects the token by its cumulative probability: in the order of ids without a
 * filter, by falling probability with one. */
typedef struct {
  double repetition_penalty, temperature, top_p, min_p;
  int64_t top_k;
} cq_sampling;
int cq_choose(cq_tensor logits, cq_tensor seen, cq_tensor uniform, const cq_sampling *options,
              cq_tensor *out);

/* ---- state-space operators ---- */

/* Mamba-2's scan (arXiv 2405.21060), with gradients for every floating-point input:
 *   dt = clamp(softplus(dt + dt_bias), dt_min, dt_max)      (softplus if dt_softplus is not 0)
 *   h_t = exp(dt_t*A)*h_{t-1} + dt_t*B_t (x) x_t            (the outer product)
 *   y_t = C_t*h_t + D*x_t                                   (times silu(z_t) if there is a z)
 * x and z are [B,L,H,P], dt [B,L,H], A, D and dt_bias [H], B and C [B,L,G,N], initial_state
 * [B,H,P,N], seq_idx int32 [B,L]. The state is reset to zero where seq_idx changes;
 * the initial state belongs to the first sequence. Inputs are float32, bfloat16 or float16; the
 * state is float32. chunk_size is a power of two from 16 to 256. `window` is the number of chunks
 * that state is carried across: negative for all, 0 for none (each chunk starts from zero), k for
 * the k chunks before a token's own; the initial state counts as the chunk before the first. With a
 * negative window the result does not depend on chunk_size. y has x's shape and dtype. final_state
 * (may be NULL) [B,H,P,N] float32 is the state after the last token, as that token's chunk sees it.
 */
typedef struct {
  cq_tensor x, dt, a, b, c;
  cq_tensor d, z, dt_bias, initial_state, seq_idx; /* each may be NULL */
  int64_t chunk_size, window;
  int dt_softplus;
  double dt_min, dt_max;
} cq_scan;
int cq_ssd_scan(const cq_scan *arguments, cq_tensor *y, cq_tensor *final_state);

/* One token of the same recurrence, without gradients: state [B,H,P,N] is updated in place
 * (float32, bfloat16 or float16); x and z [B,H,P], dt [B,H], B and C [B,G,N]. If a_log is not 0, a
 * holds log(-A), as models store it. y has x's shape and dtype.
 *
 * With a ring of the last T inputs, the state is written at every T-th token only: ring_x [B,H,T,P]
 * and ring_b [B,G,T,N] in x's dtype, ring_dt [B,H,T] float32, and held int32 [B], which counts the
 * tokens since each sequence's ring was empty. The token becomes entry held mod T. The caller adds
 * 1 to held after all layers of a token. */
typedef struct {
  cq_tensor x, dt, a, b, c;
  cq_tensor d, z, dt_bias; /* each may be NULL */
  int a_log, dt_softplus;
  double dt_min, dt_max;
  cq_tensor ring_x, ring_b, ring_dt, held; /* NULL: no ring */
} cq_step;
int cq_ssd_step(cq_tensor state, const cq_step *arguments, cq_tensor *y);
/* T, for a layer of x's dtype and device whose state is like `state` [B,H,P,N]: 0 if its state is
 * better written at each token. */
int cq_ssd_ring_length(cq_tensor state, int dtype, int64_t groups, int64_t *length);
/* Folds the inputs that a ring holds into the state; a_log [H] holds log(-A). The caller sets held
 * to 0 after all layers. */
int cq_ssd_fold(cq_tensor state, cq_tensor a_log, cq_tensor ring_x, cq_tensor ring_b,
                cq_tensor ring_dt, cq_tensor held);

/* Causal depthwise convolution, with gradients: y[t] = bias + sum_k weight[:,k]*x[t-(W-1)+k], then
 * SiLU if silu is not 0. x [B,L,D]; weight [D,W] with W from 2 to 4; bias [D] or NULL;
 * initial_state [B,W-1,D] or NULL, the inputs before the first, oldest first; seq_idx int32 [B,L]
 * or NULL. Taps do not cross a change of seq_idx; the initial state belongs to the first sequence.
 * final_state (may be NULL) receives the last W-1 inputs, [B,W-1,D], without a gradient. */
int cq_causal_conv1d(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor initial_state,
                     cq_tensor seq_idx, int silu, cq_tensor *y, cq_tensor *final_state);
/* One token of the convolution, without gradients: x [B,D]. state [B,W-1,D] is updated in place. */
int cq_conv1d_step(cq_tensor state, cq_tensor x, cq_tensor weight, cq_tensor bias, int silu,
                   cq_tensor *y);

/* norm(x*silu(z))*weight [D] over the last dimension, in groups of group_size channels (0: all of
 * them), with gradients. norm divides by the root of the mean square plus eps. z may be NULL: no
 * gate. */
int cq_gated_rms_norm(cq_tensor x, cq_tensor z, cq_tensor weight, double eps, int64_t group_size,
                      cq_tensor *y);

/* ---- distributed (dist/) ---- */

/* A key-value store that the processes of a run share over TCP. The process that passes a listening
 * socket runs it there and gives the socket away; the others pass -1 and wait up to `seconds` for
 * it. A connection serves one call at a time, so a call that waits blocks the others. */
typedef struct cq_store cq_store;
int cq_store_open(const char *host, int port, int listener, double seconds, cq_store **out);
void cq_store_close(cq_store *store);
int cq_store_set(cq_store *store, const char *key, const void *data, size_t bytes);
/* Waits up to `seconds` for the key; the caller frees *data with free. */
int cq_store_get(cq_store *store, const char *key, double seconds, void **data, size_t *bytes);
int cq_store_has(cq_store *store, const char *key, int *out);

/* A group of processes for collectives, which find each other under `name` in the store: Gloo on
 * the CPU, NCCL on a CUDA device. All members call the same operations in the same order. `address`
 * (or "") is this machine's address that Gloo listens on. An operation that a member does not join
 * fails after `seconds`. */
typedef struct cq_group cq_group;
int cq_group_new(cq_store *store, const char *name, int rank, int size, int device,
                 const char *address, double seconds, cq_group **out);
void cq_group_free(cq_group *group);

/* Operations are asynchronous and return a cq_work, which cq_work_wait or cq_work_forget frees. On
 * a GPU cq_work_wait makes the current stream wait, not the host. Tensors are contiguous. */
typedef struct cq_work cq_work;
enum { CQ_SUM, CQ_MAX };
int cq_all_reduce(cq_group *group, cq_tensor tensor, int op, cq_work **out);
/* output receives the inputs of all ranks, in rank order. */
int cq_all_gather(cq_group *group, cq_tensor output, cq_tensor input, cq_work **out);
/* output receives this rank's equal part of the reduced input. It may be that part of input itself;
 * then no copy is made and the rest of input is overwritten. */
int cq_reduce_scatter(cq_group *group, cq_tensor output, cq_tensor input, int op, cq_work **out);
int cq_broadcast(cq_group *group, cq_tensor tensor, int root, cq_work **out);
int cq_send(cq_group *group, cq_tensor tensor, int to, int tag, cq_work **out);
int cq_recv(cq_group *group, cq_tensor tensor, int from, int tag, cq_work **out);
int cq_work_wait(cq_work *work);
void cq_work_forget(cq_work *work);

/* ---- layers sharded over a group (dist/tensor_parallel.cpp) ---- */

/* The callback that runs a collective of a group and waits for it; `group` identifies the group to
 * the caller of cq_set_group_run. Tensors are contiguous; those of a sum are one tensor. Returns
 * NULL, or the reason of a failure, which the caller frees. Autograd's threads call it too. */
enum { CQ_GROUP_SUM, CQ_GROUP_GATHER, CQ_GROUP_SCATTER };
typedef char *(*cq_group_run)(uintptr_t group, int what, cq_tensor output, cq_tensor input);
void cq_set_group_run(cq_group_run run);
/* x itself; its gradient is the sum of all processes' gradients. */
int cq_group_spread(cq_tensor x, uintptr_t group, cq_tensor *out);
/* The sum of all processes' x; its gradient is passed on unchanged. It reuses x's memory: x must
 * not be used again. */
int cq_group_collect(cq_tensor x, uintptr_t group, cq_tensor *out);
/* The rows x [N,D] of all `size` processes, in rank order: [size N,D]. The gradient is this
 * process's rows of the sum of all processes' gradients. */
int cq_group_gather(cq_tensor x, int size, uintptr_t group, cq_tensor *out);
/* This process's rows [N,D] of the sum of all processes' x [size N,D]. The gradient is the gathered
 * gradient rows of all processes. */
int cq_group_scatter(cq_tensor x, int size, uintptr_t group, cq_tensor *out);
/* cq_cross_entropy_head with a weight sharded by rows over a group: this process, rank of size,
 * holds the rows from `first` on of a weight [whole,D]. The other arguments and the results are the
 * same in all processes; hidden's gradient is this process's term of a sum. The logits are never
 * gathered. */
typedef struct {
  uintptr_t group;
  int rank, size;
  int64_t first, whole;
} cq_group_part;
int cq_group_cross_entropy(cq_tensor hidden, cq_tensor weight, cq_tensor labels,
                           cq_tensor row_weights, const cq_loss *loss, const cq_group_part *part,
                           cq_tensor *out_loss, cq_tensor *out_nll);

/* Frees the storage of t if bytes is 0, else allocates it again with undefined contents. Tensors
 * that share the storage still do: they can be read while it exists. */
int cq_storage_resize(cq_tensor t, size_t bytes);

/* ---- trace (runtime/trace.cpp) ---- */

/* Records the operations of the calling thread and of the work it starts. cq_trace_end, on the same
 * thread, writes them to `path` as a Chrome trace. *table then has a line for each operation: "cpu"
 * or "gpu", calls, total nanoseconds, nanoseconds without the operations inside, and name,
 * separated by tabs. It is valid until the thread's next trace. */
int cq_trace_begin(void);
/* Between these calls, the trace shows the calling thread's work under a name. */
int cq_span_begin(const char *name);
void cq_span_end(void);
int cq_trace_end(const char *path, const char **table);

/* ---- CUDA (cuda/), loaded at run time ---- */

/* Loads libtorch's and the project's CUDA libraries. It must run before the first CUDA query of the
 * process; later calls return the first result. Returns 2 on a machine without an NVIDIA driver, 1
 * if something else is wrong. */
int cq_cuda_load(void);
/* The number of usable devices, 0 until cq_cuda_load succeeded. */
int cq_cuda_device_count(void);
typedef struct {
  char name[256];
  int major, minor, multiprocessors;
  int64_t total_bytes, free_bytes, allocated_bytes, peak_allocated_bytes;
} cq_cuda_info;
int cq_cuda_describe(int device, cq_cuda_info *info);
int cq_cuda_reset_peak(int device);
int cq_cuda_synchronize(int device);

/* A CUDA graph: work that is recorded once and replayed. Between cq_graph_begin and cq_graph_end
 * the calling thread's operations on `device` are recorded, not run. Their memory is shared by all
 * graphs of the process, so results must be copied, within the recording, to tensors that existed
 * before. After a failure while recording, call cq_graph_abandon. */
typedef struct cq_graph cq_graph;
int cq_graph_begin(int device, cq_graph **out);
int cq_graph_end(cq_graph *graph);
int cq_graph_replay(cq_graph *graph);
void cq_graph_abandon(cq_graph *graph);
/* Waits for the device first, so that no memory of a running replay is freed. */
void cq_graph_free(cq_graph *graph);

/* An asynchronous copy of a small tensor to the host. cq_fetch_begin queues it on the tensor's
 * device (on the CPU it copies at once); cq_fetch_end waits for it, copies it to data (or NULL) and
 * frees it. */
typedef struct cq_fetch cq_fetch;
int cq_fetch_begin(cq_tensor t, cq_fetch **out);
int cq_fetch_end(cq_fetch *fetch, void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
