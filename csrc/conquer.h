/* conquer.h is the one door between Go and the project's C++: every function that the Go packages call through cgo
 * and that gotch's C layer does not offer.
 *
 * Conventions
 *   - cq_tensor is an at::Tensor*, the same handle that gotch's C layer uses, so each can use
 *     what the other made.
 *   - A function that can fail returns 0 on success and 1 on failure; cq_last_error() then holds the reason
 *     (for the calling thread, until its next failure).
 *   - A tensor handed back through an `out` pointer already belongs to the innermost open scope of the calling thread.
 *   - A tensor argument that may be absent says so ("or NULL").
 *   - Shapes use the field's letters: B batch, L sequence, H heads, K key/value heads, P head dimension, D model width,
 *     V vocabulary.
 *   - dtypes are c10::ScalarType numbers; a device is -1 for the CPU and the index of a CUDA device otherwise.
 */
#ifndef CONQUER_H
#define CONQUER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *cq_tensor;

/* ---- errors -------------------------------------------------------------------------------------------------- */

/* The message of the calling thread's last failure; owned by the library, valid until the thread's next failure. */
const char *cq_last_error(void);

/* ---- scopes: deterministic freeing of tensor handles (runtime.cpp) ------------------------------------------- */

/* Opens a scope on the calling thread; tensors made from now on belong to it. */
void cq_scope_open(void);
/* Closes the innermost scope and frees what belongs to it. */
void cq_scope_close(void);
/* Gives a fresh handle (from gotch) to the innermost scope. Fails when no scope is open; the handle is then freed. */
int cq_scope_adopt(cq_tensor t);
/* Moves a handle of the innermost scope to the scope outside. Fails when it does not belong to the innermost scope, or
 * when there is no scope outside. */
int cq_scope_keep(cq_tensor t);
/* Takes a handle out of every scope: the caller frees it with cq_tensor_free. Fails when no open scope holds it. */
int cq_scope_release(cq_tensor t);
/* Frees a released handle. */
void cq_tensor_free(cq_tensor t);
/* How many handles this process holds, over all threads: for leak tests. */
int64_t cq_live_tensors(void);
/* How many scopes the calling thread has open. */
int cq_scope_depth(void);

/* ---- tensors ------------------------------------------------------------------------------------------------- */

/* Rank, dtype, device and, for at most `room` dimensions, the sizes of t, in one call. */
void cq_tensor_describe(cq_tensor t, int *rank, int *dtype, int *device, int64_t *sizes, int room);
/* The bytes of a contiguous CPU tensor, copied from or to `data`; fails when the length does not match. */
int cq_tensor_read(cq_tensor t, void *data, size_t bytes);
/* t cut along dim into n stretches, which together are all of it: views. Their gradients come back in one copy. */
int cq_split(cq_tensor t, int64_t dim, const int64_t *sizes, int n, cq_tensor *out);
/* A copy of a CPU tensor on a GPU, without a gradient; behind what is queued there, and not waited for. */
int cq_upload(cq_tensor t, int device, cq_tensor *out);
/* A new CPU tensor holding a copy of `data`. */
int cq_tensor_from(const void *data, size_t bytes, const int64_t *sizes, int rank, int dtype, cq_tensor *out);

/* A file mapped into memory, privately: writing to a view of it changes this process's copy of the page alone. The
 * mapping lives until it is closed and the last tensor that views it is gone. */
typedef struct cq_mapping cq_mapping;
int cq_map_open(const char *path, cq_mapping **out, const uint8_t **data, size_t *bytes);
void cq_map_close(cq_mapping *map);
/* A tensor over bytes [offset, offset + size of the tensor) of the mapping, without copying. */
int cq_map_tensor(cq_mapping *map, size_t offset, const int64_t *sizes, int rank, int dtype, cq_tensor *out);

/* What one addition and its scope take without Go, in nanoseconds, over n repetitions: what Go's side is measured by.
 */
double cq_time_add(cq_tensor a, cq_tensor b, int64_t n);

/* ---- autograd and randomness --------------------------------------------------------------------------------- */

/* Accumulates into each input's .grad the gradient of sum_i <outputs_i, seeds_i>; with n_inputs 0 every leaf reached
 * gets its gradient. A seed may be NULL for a scalar output (it is then one). */
int cq_backward(const cq_tensor *outputs, const cq_tensor *seeds, int n, const cq_tensor *inputs, int n_inputs,
                int keep_graph);
/* Switches gradient recording on the calling thread; returns what it was. */
int cq_set_grad_enabled(int on);
/* Drops t's .grad. */
void cq_clear_grad(cq_tensor t);
/* Makes `grad` t's .grad (sharing storage). */
int cq_set_grad(cq_tensor t, cq_tensor grad);
/* t shares src's storage, shape and dtype from now on (autograd's view of t is untouched: a parameter stays a leaf). */
int cq_set_data(cq_tensor t, cq_tensor src);
/* Seeds the generators of all devices. */
int cq_manual_seed(int64_t seed);
/* The state of the default generator of a device, as a uint8 CPU tensor. */
int cq_rng_state(int device, cq_tensor *out);
int cq_set_rng_state(int device, cq_tensor state);

/* Results that are cheap to compute again (recompute.cpp): those of cq_rms_norm, cq_swiglu, cq_causal_conv1d and
 * cq_gated_rms_norm, alone or on the way to a product. Between begin and end the calling thread notes how each comes
 * about. cq_drop_end frees the memory of those that a backward pass will read, but for what `kept` (or NULL) shares; a
 * backward pass that needs them follows cq_dropped_restore, which computes them again, to the same bits. */
typedef struct cq_dropped cq_dropped;
int cq_drop_begin(void);
int cq_drop_end(cq_tensor kept, cq_dropped **out);
int cq_dropped_restore(cq_dropped *dropped);
void cq_dropped_free(cq_dropped *dropped);

/* How many threads an operation on the CPU may use. */
void cq_set_threads(int n);
int cq_threads(void);

/* The bytes that tensors on the CPU and the scan's kernels hold now, views of mapped files aside, and the most since
 * the last reset. */
void cq_cpu_memory(int64_t *now, int64_t *most);
void cq_cpu_reset_peak(void);

/* Where the calling thread's time goes between begin and end: how long each operation took without those that it
 * called, under libtorch's name or conquer::<function of this header without cq_>. With a device (-1: the CPU) it is
 * waited for before and after each operation, so that the time is the operation's own. cq_profile_entry gives the i'th
 * in no particular order, and fails past the last. */
int cq_profile_begin(int device);
void cq_profile_end(void);
int cq_profile_entry(int i, const char **name, double *seconds, int64_t *calls);

/* ---- optimizer steps ----------------------------------------------------------------------------------------- */

/* One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101) over n weights of one device, in place; it is the
 * step'th, the first is 1. originals, means and squares are float32 tensors of the weights' shapes; a 16-bit weight is
 * rounded from its original, a float32 one is its own. Each gradient is multiplied by `scale` as it is read; decays
 * holds each weight's decay. Where originals is NULL there are none, and the averages are of the weights' dtype: all
 * three are then rounded at random, so that what a step is too small to change it changes with the right probability;
 * `seed` decides how. With originals the averages may be smaller than float32 on the CPU, and are then rounded at
 * random likewise: bfloat16, or uint8 with `exponents` (else NULL), uint8 [2, ceil(elements/256)] a weight. */
int cq_adamw(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients, const cq_tensor *means,
             const cq_tensor *squares, const cq_tensor *exponents, const double *decays, int n, int64_t step,
             double scale, double rate, double beta1, double beta2, double eps, int64_t seed);
/* An average of 8 bits: a float of 3 bits behind the point whose exponents are counted down from the largest of each
 * 256 elements: means have a sign and 15 octaves, squares (which = 1) none and 31. cq_average_unpack gives the values
 * as bfloat16, which holds them exactly; cq_average_pack rounds to the nearest, so that what was unpacked is packed to
 * the same values. exponents is the weight's. */
int cq_average_unpack(cq_tensor codes, cq_tensor exponents, int which, cq_tensor *out);
int cq_average_pack(cq_tensor values, cq_tensor codes, cq_tensor exponents, int which);
/* One step of Lion (Chen et al., arXiv 2302.06675): weights, originals (required), gradients, scale and decays as in
 * cq_adamw, means float32. */
int cq_lion(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients, const cq_tensor *means,
            const double *decays, int n, double scale, double rate, double beta1, double beta2);
int cq_lion_reference(const cq_tensor *weights, const cq_tensor *originals, const cq_tensor *gradients,
                      const cq_tensor *means, const double *decays, int n, double scale, double rate, double beta1,
                      double beta2);
/* The 2-norm of all elements of n tensors of one device. */
int cq_global_norm(const cq_tensor *tensors, int n, double *out);

/* ---- attention ----------------------------------------------------------------------------------------------- */

/* Scaled dot-product attention with grouped queries. q [B,H,L,P], k and v [B,K,S,P] with K dividing H; mask NULL, or
 * boolean / q's dtype and broadcastable to [B,H,L,S]; causal masks the upper triangle aligned to the top left. On the
 * CPU kernels of our own (cpu/flash.cpp) serve P in multiples of 16 without dropout or an added mask, libtorch the
 * rest; a row that sees nothing gives zeros there. */
int cq_sdpa(cq_tensor q, cq_tensor k, cq_tensor v, cq_tensor mask, double dropout, int causal, double scale,
            cq_tensor *out);

/* ---- kernels ------------------------------------------------------------------------------------------------- */

/* The operations that a Llama spends its time in, with kernels of our own on the CPU (cpu/). Elements are float32,
 * bfloat16 or float16; sums are float32. Gradients are recorded where an input asks for one. Each cq_x has a
 * cq_x_reference beside it: the same mathematics written with libtorch alone, which serves other devices and which
 * tests hold the kernel against. */

/* x [..., D] times weight [N, D] transposed, plus bias [N] (or NULL): [..., N]. A few rows (up to 8; 16 in float32)
 * without gradients stream the weight at memory speed; more go to oneDNN (cpu/product.cpp). */
int cq_linear(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out);
int cq_linear_reference(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor *out);

/* residual [..., N] plus cq_linear. */
int cq_linear_add(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor residual, cq_tensor *out);
/* cq_linear of cq_rms_norm of x with the weight norm [D]; and cq_swiglu of that: weight [2F, D] then holds the gate
 * first, and the result is [..., F]. */
int cq_norm_linear(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor *out);
/* residual [..., N] plus cq_norm_linear. */
int cq_norm_linear_add(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor residual,
                       cq_tensor *out);
int cq_norm_linear_swiglu(cq_tensor x, cq_tensor norm, double eps, cq_tensor weight, cq_tensor bias, cq_tensor *out);

/* What follows a block's mixer up to the next block's first product, of the block's input x [..., D] and the mixer's
 * result [..., A]:
 *   z = x + output rms_norm(mixed),  y = z + down swiglu(gate_up rms_norm(z)),  next = next rms_norm(y)
 * output [D,A], gate_up [2F,D] (gate first), down [D,F], next [N,D]; norm [A] may be NULL (then mixed is taken as it
 * is), and so may each bias and next; then *out_next is NULL. Where one kernel takes it (a single row on a Hopper GPU,
 * without gradients) it does, and *apart is NULL; otherwise it is the operations above, one after the other, and *apart
 * says why, until this thread's next call. */
typedef struct {
  cq_tensor norm, output, output_bias, mlp_norm, gate_up, gate_up_bias, down, down_bias, next_norm, next, next_bias;
  double eps, mlp_eps, next_eps;
} cq_tail;
int cq_block_tail(cq_tensor x, cq_tensor mixed, const cq_tail *tail, cq_tensor *out, cq_tensor *out_next,
                  const char **apart);

/* x [..., D] scaled to a root mean square of one, times weight [D]; rounded as Hugging Face's LlamaRMSNorm does. */
int cq_rms_norm(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out);
int cq_rms_norm_reference(cq_tensor x, cq_tensor weight, double eps, cq_tensor *out);

/* Rotary position embedding in the half-split convention of Hugging Face, and the transposition to attention's layout:
 * the heads of a fused projection qkv [B,L,(H+2K)P] become contiguous [B,H,L,P], [B,K,L,P] and [B,K,L,P], where those
 * of v are moved without turning. cos and sin are float32 [B or 1, L, R/2], one entry for each angle (not Hugging
 * Face's doubled table); the first R <= P elements of a head turn, the rest passes. Computed in float32 and rounded
 * once. The backward yields one gradient for qkv; cos and sin get none. */
int cq_rope_qkv(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin, cq_tensor *q_out,
                cq_tensor *k_out, cq_tensor *v_out);
int cq_rope_qkv_reference(cq_tensor qkv, int64_t heads, int64_t kv_heads, cq_tensor cos, cq_tensor sin,
                          cq_tensor *q_out, cq_tensor *k_out, cq_tensor *v_out);

/* cq_rope_qkv whose k and v go into caches [B,K,S,P] (K from their shape), at the positions columns (int64 [B or 1,
 * L]), in place. Without gradients for k and v. */
int cq_rope_qkv_cache(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor columns, cq_tensor k_cache,
                      cq_tensor v_cache, cq_tensor *q_out);

/* gate_up [..., 2F], gate first: silu(gate) * up [..., F]. */
int cq_swiglu(cq_tensor gate_up, cq_tensor *out);
int cq_swiglu_reference(cq_tensor gate_up, cq_tensor *out);

/* Attention of one new position of each sequence to a static cache: cq_rope_qkv_cache of qkv [B,1,(H+2K)P] at the
 * positions lengths - 1, and its queries over the positions from starts[b] (0 where starts is NULL) to lengths[b] - 1:
 * out [B,1,HP]. caches [B,K,S,P] (rows of P contiguous) with K dividing H, lengths and starts int64 [B]. Reads the
 * counted positions alone. Without gradients; where one is asked for, the reference runs. */
int cq_decode_attention(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor k_cache,
                        cq_tensor v_cache, cq_tensor lengths, cq_tensor starts, double scale, cq_tensor *out);
int cq_decode_attention_reference(cq_tensor qkv, int64_t heads, cq_tensor cos, cq_tensor sin, cq_tensor k_cache,
                                  cq_tensor v_cache, cq_tensor lengths, cq_tensor starts, double scale, cq_tensor *out);
/* cache[b,:,positions[b,l],:] = fresh[b,:,l,:] in place: cache [B,K,S,P], fresh [B,K,L,P], positions int64 [B or 1, L].
 */
int cq_cache_write(cq_tensor cache, cq_tensor fresh, cq_tensor positions);
int cq_cache_write_reference(cq_tensor cache, cq_tensor fresh, cq_tensor positions);

/* The head's product and its loss, a chunk of rows at a time: hidden [N,D], weight [V,D], labels int64 [N] (-100: not
 * counted). With the logits x = hidden weight^T of a row, its label y and lse = log sum exp x, the row's loss is
 *   (1 - label_smoothing) (lse - x_y) + label_smoothing (lse - mean x) + z_loss lse^2
 * times its entry in row_weights (float32 [N], no gradient; NULL: 1). out_loss is a float32 scalar, the sum over
 * counted rows divided by `divisor`, or by their number where divisor is 0 (with no counted row the loss is 0). out_nll
 * (or NULL) is float32 [N], lse - x_y whatever the options, zero where not counted, without a gradient. Gradients are
 * computed with the forward (for the weight only where it asks for one), so one backward is all that the result has to
 * give. */
typedef struct {
  double divisor, label_smoothing, z_loss;
} cq_loss;
int cq_cross_entropy_head(cq_tensor hidden, cq_tensor weight, cq_tensor labels, cq_tensor row_weights,
                          const cq_loss *loss, cq_tensor *out_loss, cq_tensor *out_nll);
int cq_cross_entropy_head_reference(cq_tensor hidden, cq_tensor weight, cq_tensor labels, cq_tensor row_weights,
                                    const cq_loss *loss, cq_tensor *out_loss, cq_tensor *out_nll);

/* Rows ids (int64, any shape) of weight [V,D]. On the CPU the backward adds the rows' gradients straight to weight.grad
 * where there is one already, and makes a dense gradient where there is none; so it is for gradients that accumulate
 * into .grad, as those of cq_backward do. */
int cq_embedding(cq_tensor weight, cq_tensor ids, cq_tensor *out);
int cq_embedding_reference(cq_tensor weight, cq_tensor ids, cq_tensor *out);

/* The next token of each row of logits [B,V]: int64 [B], -1 where the logits are no numbers. The filters are those of
 * transformers, in its order: repetition penalty over the tokens marked in seen (bool [B,V], or NULL), temperature (0:
 * the likeliest token, the first of equals), top-k (0: all; equals of the k-th stay), top-p (0 or 1: all), min-p (0:
 * all). uniform (float64 [B], from [0,1); not looked at where temperature is 0) decides where in the remaining mass the
 * token lies: in the order of the ids without a filter, the likeliest first with one. */
typedef struct {
  double repetition_penalty, temperature, top_p, min_p;
  int64_t top_k;
} cq_sampling;
int cq_choose(cq_tensor logits, cq_tensor seen, cq_tensor uniform, const cq_sampling *options, cq_tensor *out);

/* ---- state-space scan (cpu/ssd*.cpp, cuda/ssd*.cpp) ---------------------------------------------------------- */

/* Mamba-2's scan (arXiv 2405.21060), with gradients for every floating-point input. N is the state's width, G the
 * groups.
 *   dt = clamp(softplus(dt + dt_bias), dt_min, dt_max)      (softplus where dt_softplus is not 0)
 *   h_t = exp(dt_t*A)*h_{t-1} + dt_t*B_t (x) x_t,   y_t = C_t*h_t + D*x_t,   and with z: y_t*silu(z_t)
 * x and z [B,L,H,P], dt [B,L,H], A and D and dt_bias [H], B and C [B,L,G,N], initial_state [B,H,P,N], seq_idx int32
 * [B,L]; D, z, dt_bias, initial_state and seq_idx may be NULL. Where seq_idx changes the state starts from zero; the
 * initial state goes to the first sequence. float32, bfloat16 or float16; the state is float32.
 * chunk_size is a power of two from 16 to 256. `window` is the number of chunks that state is carried across: negative
 * for all, 0 for none (each chunk starts from zero), k for the k chunks before a token's own; the initial state counts
 * as the chunk before the first. With a negative window the result does not depend on chunk_size.
 * y has x's shape and dtype. final_state (may be NULL) [B,H,P,N] float32 is the state after the last token as that
 * token's own chunk sees it. */
int cq_ssd_scan(cq_tensor x, cq_tensor dt, cq_tensor a, cq_tensor b, cq_tensor c, cq_tensor d, cq_tensor z,
                cq_tensor dt_bias, cq_tensor initial_state, cq_tensor seq_idx, int64_t chunk_size, int64_t window,
                int dt_softplus, double dt_min, double dt_max, cq_tensor *y, cq_tensor *final_state);

/* One token of the same recurrence, without gradients: state [B,H,P,N] is updated in place (float32, bfloat16 or
 * float16); x and z [B,H,P], dt [B,H], B and C [B,G,N]; D, z and dt_bias may be NULL. Where a_log is not 0, a holds
 * log(-A), as models keep it. y has x's shape and dtype. */
int cq_ssd_step(cq_tensor state, cq_tensor x, cq_tensor dt, cq_tensor a, int a_log, cq_tensor b, cq_tensor c,
                cq_tensor d, cq_tensor z, cq_tensor dt_bias, int dt_softplus, double dt_min, double dt_max,
                cq_tensor *y);

/* Causal depthwise convolution, with gradients: y[t] = bias + sum_k weight[:,k]*x[t-(W-1)+k], then SiLU where silu is
 * not 0. x [B,L,D], weight [D,W] with W from 2 to 4, bias [D] or NULL, initial_state [B,W-1,D] or NULL (the inputs
 * before the first, oldest first), seq_idx int32 [B,L] or NULL (no tap reaches into another sequence; the initial state
 * goes to the first). final_state (may be NULL) receives the last W-1 inputs, [B,W-1,D], without a gradient. */
int cq_causal_conv1d(cq_tensor x, cq_tensor weight, cq_tensor bias, cq_tensor initial_state, cq_tensor seq_idx,
                     int silu, cq_tensor *y, cq_tensor *final_state);
/* One step of it, without gradients: x [B,D]; state [B,W-1,D] is updated in place. */
int cq_conv1d_step(cq_tensor state, cq_tensor x, cq_tensor weight, cq_tensor bias, int silu, cq_tensor *y);

/* norm(x*silu(z))*weight over the last dimension, in groups of group_size channels (0: all of them), with gradients;
 * norm divides by the root of the mean square plus eps. z NULL: no gate. weight [D]. */
int cq_gated_rms_norm(cq_tensor x, cq_tensor z, cq_tensor weight, double eps, int64_t group_size, cq_tensor *y);

/* ---- distributed (dist.cpp) ----------------------------------------------------------------------------------- */

/* A key-value store in one process that others reach over TCP: where the processes of a run meet. The process with
 * `server` set holds it (port 0: any free one); the others wait up to `seconds` for it to appear. A connection serves
 * one call at a time, so a call that waits holds the others up. */
typedef struct cq_store cq_store;
int cq_store_open(const char *host, int port, int server, double seconds, cq_store **out);
int cq_store_port(cq_store *store);
void cq_store_close(cq_store *store);
int cq_store_set(cq_store *store, const char *key, const void *data, size_t bytes);
/* Waits up to `seconds` for the key; the caller frees *data with free. */
int cq_store_get(cq_store *store, const char *key, double seconds, void **data, size_t *bytes);
int cq_store_has(cq_store *store, const char *key, int *out);

/* A group of processes that take part in collectives, met under `name` in the store: Gloo's on the CPU, NCCL's on a
 * CUDA device. All of its members call the same operations in the same order. `address` (or "") is the address of this
 * machine that Gloo listens at. An operation that a member does not join fails after `seconds`. */
typedef struct cq_group cq_group;
int cq_group_new(cq_store *store, const char *name, int rank, int size, int device, const char *address, double seconds,
                 cq_group **out);
void cq_group_free(cq_group *group);

/* Operations start and hand back a cq_work, which ends with cq_work_wait (it frees the work; on a GPU it makes the
 * current stream wait, not the host) or cq_work_forget. Tensors are contiguous. */
typedef struct cq_work cq_work;
enum { CQ_SUM, CQ_MAX };
int cq_all_reduce(cq_group *group, cq_tensor tensor, int op, cq_work **out);
/* output holds the inputs of all ranks, one behind the other. */
int cq_all_gather(cq_group *group, cq_tensor output, cq_tensor input, cq_work **out);
/* output receives this rank's equal part of the reduced input; it may be that part of the input itself, which then
 * holds nothing of use elsewhere, and no copy is made. */
int cq_reduce_scatter(cq_group *group, cq_tensor output, cq_tensor input, int op, cq_work **out);
int cq_broadcast(cq_group *group, cq_tensor tensor, int root, cq_work **out);
int cq_send(cq_group *group, cq_tensor tensor, int to, int tag, cq_work **out);
int cq_recv(cq_group *group, cq_tensor tensor, int from, int tag, cq_work **out);
int cq_work_wait(cq_work *work);
void cq_work_forget(cq_work *work);

/* ---- layers divided over a group (parallel.cpp) ---------------------------------------------------------------- */

/* Runs an operation of a group, which is what `group` stands for to the caller of cq_set_group_run, and waits for it.
 * Tensors are contiguous; those of a sum are one. Returns NULL, or why it failed, for the caller to free. Called on the
 * threads that autograd runs on, too. */
enum { CQ_GROUP_SUM, CQ_GROUP_GATHER, CQ_GROUP_SCATTER };
typedef char *(*cq_group_run)(uintptr_t group, int what, cq_tensor output, cq_tensor input);
void cq_set_group_run(cq_group_run run);
/* x as it is; its gradient is the sum of those of all processes. */
int cq_group_spread(cq_tensor x, uintptr_t group, cq_tensor *out);
/* The sum of all processes' x, whose gradient goes to each of them. It takes x's memory: x must not be used again. */
int cq_group_collect(cq_tensor x, uintptr_t group, cq_tensor *out);
/* Of x [N,D], of which each of `size` processes has other rows, all rows, in order of the processes: [size N,D]. The
 * gradient is this process's rows of the sum of all processes'. */
int cq_group_gather(cq_tensor x, int size, uintptr_t group, cq_tensor *out);
/* This process's rows [N,D] of the sum of all processes' x [size N,D]. The gradient is the rows' of all processes. */
int cq_group_scatter(cq_tensor x, int size, uintptr_t group, cq_tensor *out);
/* cq_cross_entropy_head where the processes of a group hold the rows of the weight: this one, the rank'th of size, has
 * those of [whole,D] from `first` on, and all hold the other arguments. What comes out is the same everywhere; hidden's
 * gradient is this process's part of a sum. The logits are never put together. */
typedef struct {
  uintptr_t group;
  int rank, size;
  int64_t first, whole;
} cq_group_part;
int cq_group_cross_entropy(cq_tensor hidden, cq_tensor weight, cq_tensor labels, cq_tensor row_weights,
                           const cq_loss *loss, const cq_group_part *part, cq_tensor *out_loss, cq_tensor *out_nll);

/* Gives the memory behind t, and behind every tensor that shares it, back (bytes 0) or takes it anew, with undefined
 * contents. Tensors over it stay what they are, but may be read only while the memory is there. */
int cq_storage_resize(cq_tensor t, size_t bytes);

/* ---- trace (trace.cpp) --------------------------------------------------------------------------------------- */

/* Records the operations of the calling thread, and of what it starts, until cq_trace_end, on the same thread, writes
 * them to `path` as a Chrome trace. table then holds a line an operation: "cpu" or "gpu", calls, nanoseconds in all and
 * without the operations inside, name, with tabs between; it is valid until the thread's next trace. */
int cq_trace_begin(void);
/* Between the two, what the calling thread does is shown under a name. */
int cq_span_begin(const char *name);
void cq_span_end(void);
int cq_trace_end(const char *path, const char **table);

/* ---- CUDA (cuda/), loaded at run time ------------------------------------------------------------------------ */

/* Loads libtorch's CUDA part and the project's own from the folder of this library; must run before the first CUDA
 * query of the process. Idempotent. Fails, with the reason, where there is no driver or the library does not load. */
int cq_cuda_load(void);
/* Devices that can be used (0 until cq_cuda_load succeeded). */
int cq_cuda_device_count(void);
typedef struct {
  char name[256];
  int major, minor, multiprocessors;
  int64_t total_bytes, free_bytes, allocated_bytes, peak_allocated_bytes;
} cq_cuda_info;
int cq_cuda_describe(int device, cq_cuda_info *info);
int cq_cuda_reset_peak(int device);
int cq_cuda_synchronize(int device);

/* A stretch of work recorded once and replayed: a CUDA graph. Between cq_graph_begin and cq_graph_end the calling
 * thread's operations on `device` are recorded instead of run; what they allocate comes from memory that all graphs of
 * the process share, so results must be copied, within the recording, to tensors that were there before. A failure
 * while recording ends with cq_graph_abandon. */
typedef struct cq_graph cq_graph;
int cq_graph_begin(int device, cq_graph **out);
int cq_graph_end(cq_graph *graph);
int cq_graph_replay(cq_graph *graph);
void cq_graph_abandon(cq_graph *graph);
/* Waits for the device, so that nothing frees what a replay still uses. */
void cq_graph_free(cq_graph *graph);

/* A copy of a small tensor on its way to the host: started behind what is queued on the tensor's device, and waited for
 * when its bytes are wanted (cq_fetch_end also frees it; data may be NULL). On the CPU the copy is made at once. */
typedef struct cq_fetch cq_fetch;
int cq_fetch_begin(cq_tensor t, cq_fetch **out);
int cq_fetch_end(cq_fetch *fetch, void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
