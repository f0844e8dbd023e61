// The arithmetic, compiled once per instruction set: LANES floats per vector, the table called KERNELS.
//
// Written with the vector extensions of GCC and Clang, so one source serves AVX-512, AVX2, SSE2 and Arm's NEON.
#include "engine.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace contraprune {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LANES * 4)));

constexpr int kVectors = kBlock / LANES;
// Sized so that the accumulators fit the registers: 32 of AVX-512, else 16.
constexpr int kPair = LANES == 16 ? 2 : 1;        // rows per group of the unstructured kernel
constexpr int kWide = LANES == 16 ? 4 : 8;        // vectors per row of it
constexpr int kTile = LANES == 16 ? 4 : 2;        // vectors per row of the kernel with four rows
static_assert(kPair <= kMaxPair && kVectors % kTile == 0, "");

#define UNROLL _Pragma("GCC unroll 16")

inline Vec splat(float x) { return x - (Vec){}; }
inline Vec load(const float *p) { return *(const Vec *)p; }
inline void store(float *p, Vec v) { *(Vec *)p = v; }
// The x86 instructions give what the comparisons below do, of NaN too, but GCC does not find them.
#if LANES == 16
inline Vec larger(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec smaller(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif LANES == 8
inline Vec larger(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec smaller(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
#endif

// 2^x for x <= 127, relative error 1e-7: 2^x = 2^n 2^r with |r| <= 1/2 and a minimax polynomial for 2^r.
inline Vec power_of_two(Vec x) {
    x = larger(x, splat(-126.0f));
    const Vec shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Vec shifted = x + shifter;
    Vec r = x - (shifted - shifter);
    Vec p = splat(0.001327647215522183f);
    p = p * r + 0.009675541683536015f;
    p = p * r + 0.05550713276032836f;
    p = p * r + 0.24022119717417886f;
    p = p * r + 0.6931469670613088f;
    p = p * r + 1.0f;
    return (Vec)((Int)p + ((Int)shifted << 23));
}

constexpr float kLog2OfE = 1.44269504088896341f;

inline Vec exponential(Vec x) { return power_of_two(x * kLog2OfE); }

// x Phi(x), error below 2e-7 max(1, |x|): Phi(x) - 1/2 is x times a minimax rational function of x^2 (to 1.2e-8).
// Errors of neighbouring neurons add up, so this has to be better than the outputs have to be.
inline Vec gelu(Vec x) {
    Vec c = smaller(larger(x, splat(-5.3f)), splat(5.3f));
    Vec u = c * c;
    Vec p = splat(2.3387340064573436e-08f);
    p = p * u + 6.4681898948038e-06f;
    p = p * u + 0.00017036779900081456f;
    p = p * u + 0.00468772929161787f;
    p = p * u + 0.03389681875705719f;
    p = p * u + 0.39894211292266846f;
    Vec q = splat(1.2246474625499104e-06f);
    q = q * u + 7.469970296369866e-05f;
    q = q * u + 0.0018924910109490156f;
    q = q * u + 0.028691619634628296f;
    q = q * u + 0.25163158774375916f;
    q = q * u + 1.0f;
    return x * (c * p / q + 0.5f);
}

inline Vec activate(Vec x, Activation activation) {
    switch (activation) {
        case kGelu: return gelu(x);
        case kGeluTanh: return x / (1.0f + exponential(smaller(-1.5957691216057308f * (x + 0.044715f * x * x * x), splat(88.0f))));
        case kRelu: return larger(x, (Vec){});
        case kTanh: return 1.0f - 2.0f / (1.0f + exponential(smaller(2.0f * x, splat(88.0f))));
        default: return x;
    }
}

// ---- sparse and dense linear layers ----

struct Work {
    const Group *group, *end;
    const uint16_t *index;
    const float *weight;
    const float *input;  // of the panel
    float *output;
    const float *bias;  // of output row 0, or null
    bool add;           // to what the output holds
    bool last;          // panel: ends with the activation
};

// ROWS rows of NV vectors. SHARED: one index for all rows (4x1 blocks), else one per row (unstructured).
template <int ROWS, int NV, bool SHARED, Activation ACTIVATION>
void rows_of(const Work &work) {
    const uint16_t *index = work.index;
    const float *weight = work.weight;
    for (const Group *group = work.group; group != work.end; group++) {
        float *out[ROWS];
        Vec sum[ROWS][NV];
        UNROLL for (int r = 0; r < ROWS; r++) {
            uint32_t offset = SHARED ? group->row[0] + r * kBlock : group->row[SHARED ? 0 : r];
            out[r] = work.output + offset;
            const float bias = work.bias != nullptr ? work.bias[offset / kBlock] : 0.0f;
            UNROLL for (int v = 0; v < NV; v++)
                sum[r][v] = work.add ? load(out[r] + v * LANES) + bias : splat(bias);
        }
        for (uint32_t count = group->count; count != 0; count--) {
            UNROLL for (int r = 0; r < ROWS; r++) {
                const float *x = (const float *)((const char *)work.input + (size_t)index[SHARED ? 0 : r] * 8);
                float w = weight[r];
                UNROLL for (int v = 0; v < NV; v++) sum[r][v] += w * load(x + v * LANES);
            }
            index += SHARED ? 1 : ROWS;
            weight += ROWS;
        }
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < NV; v++)
            store(out[r] + v * LANES, work.last ? activate(sum[r][v], ACTIVATION) : sum[r][v]);
    }
}

template <int ROWS, int NV, bool SHARED>
void activated(const Work &work, Activation activation) {
    switch (work.last ? activation : kNone) {
        case kGelu: return rows_of<ROWS, NV, SHARED, kGelu>(work);
        case kGeluTanh: return rows_of<ROWS, NV, SHARED, kGeluTanh>(work);
        case kRelu: return rows_of<ROWS, NV, SHARED, kRelu>(work);
        case kTanh: return rows_of<ROWS, NV, SHARED, kTanh>(work);
        default: return rows_of<ROWS, NV, SHARED, kNone>(work);
    }
}

template <int ROWS, int NV, bool SHARED>
void of_width(const Work &work, int64_t vectors, Activation activation) {
    if constexpr (NV > 1)
        if (vectors < NV) return of_width<ROWS, NV - 1, SHARED>(work, vectors, activation);
    activated<ROWS, NV, SHARED>(work, activation);
}

void linear(const Matrix &matrix, const float *input, float *output, int64_t vectors, int64_t first_chunk,
            int64_t last_chunk, bool add, Activation activation) {
    const int64_t width = matrix.blocks ? kTile : kWide;
    for (int64_t chunk = first_chunk; chunk < last_chunk; chunk++)
        for (int64_t panel = 0; panel < matrix.panels; panel++) {
            const Section &section = matrix.sections[chunk * matrix.panels + panel];
            Work work;
            work.group = matrix.groups + section.group;
            work.end = work.group + section.groups;
            work.index = matrix.index + section.index;
            work.weight = matrix.weights + section.weight;
            work.bias = panel == 0 ? matrix.bias : nullptr;
            work.add = add || panel > 0;
            work.last = panel == matrix.panels - 1;
            for (int64_t vector = 0; vector < vectors; vector += width) {
                work.input = input + panel * matrix.panel * kBlock + vector * LANES;
                work.output = output + vector * LANES;
                if (matrix.blocks)
                    of_width<kBlockRows, kTile, true>(work, vectors - vector, activation);
                else
                    of_width<kPair, kWide, false>(work, vectors - vector, activation);
            }
        }
}

// ---- attention ----

struct Span {
    int64_t begin, end;
};

inline Span overlap(int64_t begin, int64_t end, int64_t low, int64_t high) {
    return {begin > low ? begin : low, end < high ? end : high};
}

// Scores of KEYS keys for the queries in NV vectors, in rows of NV vectors; `largest` of each query is kept.
template <int KEYS, int NV>
inline void score(const float *keys, const float *queries, int64_t head_size, float *scores, Vec (&largest)[NV]) {
    Vec sum[KEYS][NV];
    UNROLL for (int k = 0; k < KEYS; k++) UNROLL for (int v = 0; v < NV; v++) sum[k][v] = (Vec){};
    for (int64_t f = 0; f < head_size; f++) {
        Vec x[NV];
        UNROLL for (int v = 0; v < NV; v++) x[v] = load(queries + f * kBlock + v * LANES);
        UNROLL for (int k = 0; k < KEYS; k++) {
            const float w = keys[f * kBlock + k];
            UNROLL for (int v = 0; v < NV; v++) sum[k][v] += w * x[v];
        }
    }
    UNROLL for (int k = 0; k < KEYS; k++) UNROLL for (int v = 0; v < NV; v++) {
        store(scores + (k * NV + v) * LANES, sum[k][v]);
        largest[v] = larger(largest[v], sum[k][v]);
    }
}

// One head's attention of the queries in NV vectors of a block, from `lane`, to the keys of one sequence.
template <int NV>
struct Head {
    const Attention &a;
    const Layout &layout;
    Span sequence;
    int64_t block, lane, head, first_block;

    int64_t features() const { return 3 * a.heads * a.head_size + kSpareRows; }
    // Feature f of this head's queries (part 0), keys (1) or values (2) in a block.
    const float *row(int64_t b, int64_t part, int64_t f) const {
        return a.qkv + (b * features() + (part * a.heads + head) * a.head_size + f) * kBlock;
    }
    bool more(int64_t b) const { return b < layout.blocks && layout.block_start[b] < sequence.end; }
    Span keys(int64_t b) const {  // lanes of block b that belong to the sequence
        const int64_t start = layout.block_start[b];
        Span tokens = overlap(sequence.begin, sequence.end, start, layout.block_start[b + 1]);
        return {tokens.begin - start, tokens.end - start};
    }

    void score_all(Vec (&largest)[NV]) const {
        const float *queries = row(block, 0, 0) + lane;
        float *scores = a.scores;
        for (int64_t b = first_block; more(b); b++) {
            const Span lanes = keys(b);
            int64_t k = lanes.begin;
            for (; k + 4 <= lanes.end; k += 4, scores += 4 * NV * LANES)
                score<4, NV>(row(b, 1, 0) + k, queries, a.head_size, scores, largest);
            for (; k < lanes.end; k++, scores += NV * LANES)
                score<1, NV>(row(b, 1, 0) + k, queries, a.head_size, scores, largest);
        }
    }

    // Scores become scale * scores + bias.
    void add_bias(float scale, Vec (&largest)[NV]) const {
        const int64_t query = layout.block_start[block] + lane;
        UNROLL for (int v = 0; v < NV; v++) largest[v] = splat(-__FLT_MAX__);
        for (int64_t key = sequence.begin; key < sequence.end; key++) {
            const float *bias = a.bias + head * (2 * a.span - 1) + a.span - 1 + (query - key);
            float *scores = a.scores + (key - sequence.begin) * NV * LANES;
            for (int64_t i = 0; i < NV * LANES; i++) {
                const bool own = query + i >= sequence.begin && query + i < sequence.end;
                scores[i] = scale * scores[i] + (own ? bias[i] : 0.0f);
            }
            UNROLL for (int v = 0; v < NV; v++) largest[v] = larger(largest[v], load(scores + v * LANES));
        }
    }

    // Scores become e^(scale * (score - largest)); returns what to multiply sums by so that weights add up to one.
    void exponentials(float scale, const Vec (&largest)[NV], Vec (&share)[NV]) const {
        const float factor = scale * kLog2OfE;
        Vec total[NV], shift[NV];
        UNROLL for (int v = 0; v < NV; v++) total[v] = (Vec){}, shift[v] = largest[v] * factor;
        for (int64_t key = 0; key < sequence.end - sequence.begin; key++)
            UNROLL for (int v = 0; v < NV; v++) {
                float *score = a.scores + (key * NV + v) * LANES;
                const Vec weight = power_of_two(load(score) * factor - shift[v]);
                store(score, weight);
                total[v] += weight;
            }
        UNROLL for (int v = 0; v < NV; v++) share[v] = 1.0f / total[v];
    }

    template <int ROWS>
    void context(int64_t feature, const Vec (&share)[NV]) const {
        Vec sum[ROWS][NV];
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < NV; v++) sum[r][v] = (Vec){};
        const float *weight = a.scores;
        for (int64_t b = first_block; more(b); b++) {
            const float *value = row(b, 2, feature);
            const Span lanes = keys(b);
            for (int64_t k = lanes.begin; k < lanes.end; k++, weight += NV * LANES) {
                Vec x[NV];
                UNROLL for (int v = 0; v < NV; v++) x[v] = load(weight + v * LANES);
                UNROLL for (int r = 0; r < ROWS; r++) {
                    const float w = value[r * kBlock + k];
                    UNROLL for (int v = 0; v < NV; v++) sum[r][v] += w * x[v];
                }
            }
        }
        float *out = a.context + (head * a.head_size + feature) * kBlock + lane;
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < NV; v++)
            put(out + r * kBlock + v * LANES, sum[r][v] * share[v], v);
    }

    void put(float *out, Vec result, int v) const {
        const int64_t token = layout.block_start[block] + lane + v * LANES;
        if (token >= sequence.begin && token + LANES <= sequence.end) {
            store(out, result);
        } else {  // the vector also holds tokens of other sequences
            for (int64_t i = 0; i < LANES; i++)
                if (token + i >= sequence.begin && token + i < sequence.end) out[i] = result[i];
        }
    }

    void attend() const {
        Vec largest[NV], share[NV];
        UNROLL for (int v = 0; v < NV; v++) largest[v] = splat(-__FLT_MAX__);
        float scale = 1.0f / __builtin_sqrtf((float)a.head_size);
        score_all(largest);
        if (a.bias != nullptr) {
            add_bias(scale, largest);
            scale = 1.0f;
        }
        exponentials(scale, largest, share);
        int64_t feature = 0;
        for (; feature + 4 <= a.head_size; feature += 4) context<4>(feature, share);
        for (; feature < a.head_size; feature++) context<1>(feature, share);
    }
};

template <int NV>
void attend(const Attention &a, const Layout &layout, Span sequence, int64_t block, int64_t lane, int64_t head,
            int64_t first_block, int64_t vectors) {
    if constexpr (NV > 1)
        if (vectors < NV)
            return attend<NV - 1>(a, layout, sequence, block, lane, head, first_block, vectors);
    Head<NV>{a, layout, sequence, block, lane, head, first_block}.attend();
}

void attention(const Attention &a, const Layout &layout, int64_t block, int64_t first_head, int64_t last_head) {
    const int64_t low = layout.block_start[block], high = layout.block_start[block + 1];
    for (int64_t s = 0; s < layout.sequences; s++) {
        const Span sequence = {layout.sequence_start[s], layout.sequence_start[s + 1]};
        const Span queries = overlap(sequence.begin, sequence.end, low, high);
        if (queries.begin >= queries.end) continue;
        int64_t first_block = block;
        while (layout.block_start[first_block] > sequence.begin) first_block--;
        const int64_t first_vector = (queries.begin - low) / LANES, past = (queries.end - low + LANES - 1) / LANES;
        for (int64_t head = first_head; head < last_head; head++)
            for (int64_t vector = first_vector; vector < past; vector += kTile)
                attend<kTile>(a, layout, sequence, block, vector * LANES, head, first_block, past - vector);
    }
}

// ---- layer norm ----

constexpr int64_t kNormRows = 16;  // features whose mean and variance are found together, while in the nearest cache

// Means and variances of parts are put together as in Chan, Golub and LeVeque, 1979: exact where the mean is large.
template <int NV>
void norm_vectors(float *state, const float *scale, const float *shift, int64_t features, float epsilon) {
    Vec mean[NV], squares[NV];
    UNROLL for (int v = 0; v < NV; v++) mean[v] = (Vec){}, squares[v] = (Vec){};
    for (int64_t begin = 0; begin < features; begin += kNormRows) {
        const int64_t end = features - begin < kNormRows ? features : begin + kNormRows;
        const float rows = (float)(end - begin), part = rows / (float)end, both = (float)begin * part;
        UNROLL for (int v = 0; v < NV; v++) {
            Vec sum = (Vec){}, own = (Vec){};
            for (int64_t f = begin; f < end; f++) sum += load(state + f * kBlock + v * LANES);
            sum *= 1.0f / rows;
            for (int64_t f = begin; f < end; f++) {
                const Vec d = load(state + f * kBlock + v * LANES) - sum;
                own += d * d;
            }
            const Vec step = sum - mean[v];
            mean[v] += step * part;
            squares[v] += own + step * step * both;
        }
    }
    UNROLL for (int v = 0; v < NV; v++) {
        const Vec variance = squares[v] / (float)features + epsilon;
        for (int i = 0; i < LANES; i++) squares[v][i] = 1.0f / __builtin_sqrtf(variance[i]);
    }
    for (int64_t f = 0; f < features; f++)
        UNROLL for (int v = 0; v < NV; v++) {
            float *x = state + f * kBlock + v * LANES;
            store(x, (load(x) - mean[v]) * squares[v] * scale[f] + shift[f]);
        }
}

template <int NV>
void norm_width(float *state, const float *scale, const float *shift, int64_t features, float epsilon,
                int64_t vectors) {
    if constexpr (NV > 1)
        if (vectors < NV) return norm_width<NV - 1>(state, scale, shift, features, epsilon, vectors);
    norm_vectors<NV>(state, scale, shift, features, epsilon);
}

void norm(float *state, const float *scale, const float *shift, int64_t features, float epsilon, int64_t first_vector,
          int64_t last_vector) {
    for (int64_t v = first_vector; v < last_vector; v += kTile)
        norm_width<kTile>(state + v * LANES, scale, shift, features, epsilon, last_vector - v);
}

}  // namespace

extern const Kernels KERNELS = {LANES, kPair, linear, attention, norm};

}  // namespace contraprune
