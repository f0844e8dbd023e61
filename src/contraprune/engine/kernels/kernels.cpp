// The arithmetic, compiled once per instruction set: LANES floats per vector, the table called KERNELS.
//
// Written with the vector extensions of GCC and Clang, so one source serves AVX-512, AVX2, SSE2 and Arm's NEON.
#include "engine.h"

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
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// e^x for x <= 88, relative error 1e-7: e^x = 2^n e^r with |r| <= ln(2)/2 and a minimax polynomial for e^r.
inline Vec exponential(Vec x) {
    x = larger(x, splat(-87.0f));
    const Vec shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Vec shifted = x * 1.44269504088896341f + shifter;
    Vec n = shifted - shifter;
    Vec r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vec p = splat(0.008297655190397732f);
    p = p * r + 0.04191538350505022f;
    p = p * r + 0.16667574736231106f;
    p = p * r + 0.4999889483783679f;
    p = p * r + 0.999999691986576f;
    p = p * r + 1.0f;
    return (Vec)((Int)p + ((Int)shifted << 23));
}

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
    const float *bias;  // of output row 0
    bool first, last;   // panel: starts from the bias, ends with the activation
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
            UNROLL for (int v = 0; v < NV; v++)
                sum[r][v] = work.first ? splat(work.bias[offset / kBlock]) : load(out[r] + v * LANES);
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
            int64_t last_chunk, Activation activation) {
    const int64_t width = matrix.blocks ? kTile : kWide;
    for (int64_t chunk = first_chunk; chunk < last_chunk; chunk++)
        for (int64_t panel = 0; panel < matrix.panels; panel++) {
            const Section &section = matrix.sections[chunk * matrix.panels + panel];
            Work work;
            work.group = matrix.groups + section.group;
            work.end = work.group + section.groups;
            work.index = matrix.index + section.index;
            work.weight = matrix.weights + section.weight;
            work.bias = matrix.bias;
            work.first = panel == 0;
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

// C[r][.] (+)= sum over k of A[r * row_step + k * k_step] * B[k * kBlock + .], for ROWS rows of NV vectors.
template <int ROWS, int NV, bool ADD>
inline void product(const float *a, int64_t row_step, int64_t k_step, const float *b, int64_t size, float *c,
                    float factor) {
    Vec sum[ROWS][NV];
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < NV; v++)
        sum[r][v] = ADD ? load(c + r * kBlock + v * LANES) : (Vec){};
    for (int64_t k = 0; k < size; k++) {
        Vec x[NV];
        UNROLL for (int v = 0; v < NV; v++) x[v] = load(b + k * kBlock + v * LANES);
        UNROLL for (int r = 0; r < ROWS; r++) {
            float w = a[r * row_step + k * k_step];
            UNROLL for (int v = 0; v < NV; v++) sum[r][v] += w * x[v];
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int v = 0; v < NV; v++)
        store(c + r * kBlock + v * LANES, ADD ? sum[r][v] : sum[r][v] * factor);
}

template <int NV, bool ADD>
void products(const float *a, int64_t row_step, int64_t k_step, const float *b, int64_t size, float *c, int64_t rows,
              float factor) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4)
        product<4, NV, ADD>(a + row * row_step, row_step, k_step, b, size, c + row * kBlock, factor);
    for (; row < rows; row++)
        product<1, NV, ADD>(a + row * row_step, row_step, k_step, b, size, c + row * kBlock, factor);
}

struct Span {
    int64_t begin, end;
};

inline Span overlap(int64_t begin, int64_t end, int64_t low, int64_t high) {
    return {begin > low ? begin : low, end < high ? end : high};
}

// One head's attention of the queries in NV vectors of a block (from `lane`) to the keys of one sequence.
template <int NV>
void attend(const Attention &a, const Layout &layout, int64_t block, int64_t sequence, int64_t lane, int64_t head) {
    const int64_t features = 3 * a.heads * a.head_size + kSpareRows, width = a.heads * a.head_size;
    const int64_t first = layout.sequence_start[sequence], past = layout.sequence_start[sequence + 1];
    const float *queries = a.qkv + (block * features + head * a.head_size) * kBlock + lane;
    const float scale = 1.0f / __builtin_sqrtf((float)a.head_size);
    float *const scores = a.scores;
    int64_t block_of_first = 0;
    while (layout.block_start[block_of_first + 1] <= first) block_of_first++;

    for (int64_t b = block_of_first; b < layout.blocks && layout.block_start[b] < past; b++) {
        Span keys = overlap(first, past, layout.block_start[b], layout.block_start[b + 1]);
        const float *k =
            a.qkv + (b * features + width + head * a.head_size) * kBlock + (keys.begin - layout.block_start[b]);
        products<NV, false>(k, 1, kBlock, queries, a.head_size, scores + (keys.begin - first) * kBlock,
                            keys.end - keys.begin, scale);
    }
    if (a.bias != nullptr)
        for (int64_t key = 0; key < past - first; key++) {
            const float *row = a.bias + head * (2 * a.span - 1) + a.span - 1 +
                               (layout.block_start[block] + lane - first - key);
            for (int v = 0; v < NV; v++)
                for (int64_t i = 0; i < LANES; i++) {
                    int64_t query = layout.block_start[block] + lane + v * LANES + i;
                    if (query >= first && query < past) scores[key * kBlock + v * LANES + i] += row[v * LANES + i];
                }
        }

    Vec largest[NV], total[NV];
    UNROLL for (int v = 0; v < NV; v++) largest[v] = load(scores + v * LANES), total[v] = (Vec){};
    for (int64_t key = 1; key < past - first; key++)
        UNROLL for (int v = 0; v < NV; v++)
            largest[v] = larger(largest[v], load(scores + key * kBlock + v * LANES));
    for (int64_t key = 0; key < past - first; key++)
        UNROLL for (int v = 0; v < NV; v++) {
            float *score = scores + key * kBlock + v * LANES;
            Vec weight = exponential(load(score) - largest[v]);
            store(score, weight);
            total[v] += weight;
        }

    alignas(64) float context[4 * kBlock];  // four features at a time
    Vec share[NV];
    UNROLL for (int v = 0; v < NV; v++) share[v] = 1.0f / total[v];
    for (int64_t feature = 0; feature < a.head_size; feature += 4) {
        int64_t rows = a.head_size - feature < 4 ? a.head_size - feature : 4;
        for (int r = 0; r < 4; r++) UNROLL for (int v = 0; v < NV; v++) store(context + r * kBlock + v * LANES, (Vec){});
        for (int64_t b = block_of_first; b < layout.blocks && layout.block_start[b] < past; b++) {
            Span keys = overlap(first, past, layout.block_start[b], layout.block_start[b + 1]);
            const float *value = a.qkv + (b * features + 2 * width + head * a.head_size + feature) * kBlock +
                                 (keys.begin - layout.block_start[b]);
            products<NV, true>(value, kBlock, 1, scores + (keys.begin - first) * kBlock, keys.end - keys.begin,
                               context, rows, 1.0f);
        }
        for (int64_t r = 0; r < rows; r++)
            for (int v = 0; v < NV; v++) {
                float *out = a.context + (head * a.head_size + feature + r) * kBlock + lane + v * LANES;
                Vec result = load(context + r * kBlock + v * LANES) * share[v];
                int64_t token = layout.block_start[block] + lane + v * LANES;
                if (token >= first && token + LANES <= past) {
                    store(out, result);
                } else {  // the vector also holds tokens of other sequences
                    for (int64_t i = 0; i < LANES; i++)
                        if (token + i >= first && token + i < past) out[i] = result[i];
                }
            }
    }
}

template <int NV>
void attend_width(const Attention &a, const Layout &layout, int64_t block, int64_t sequence, int64_t lane,
                  int64_t head, int64_t vectors) {
    if constexpr (NV > 1)
        if (vectors < NV) return attend_width<NV - 1>(a, layout, block, sequence, lane, head, vectors);
    attend<NV>(a, layout, block, sequence, lane, head);
}

void attention(const Attention &a, const Layout &layout, int64_t block, int64_t first_head, int64_t last_head) {
    const int64_t low = layout.block_start[block], high = layout.block_start[block + 1];
    for (int64_t sequence = 0; sequence < layout.sequences; sequence++) {
        Span queries =
            overlap(layout.sequence_start[sequence], layout.sequence_start[sequence + 1], low, high);
        if (queries.begin >= queries.end) continue;
        int64_t first_vector = (queries.begin - low) / LANES, last_vector = (queries.end - low + LANES - 1) / LANES;
        for (int64_t head = first_head; head < last_head; head++)
            for (int64_t vector = first_vector; vector < last_vector; vector += kTile)
                attend_width<kTile>(a, layout, block, sequence, vector * LANES, head, last_vector - vector);
    }
}

// ---- layer norm ----

template <bool ADD>
void norm_vector(float *state, float *update, const float *scale, const float *shift, int64_t features,
                 float epsilon) {
    Vec sum = (Vec){}, squares = (Vec){};
    for (int64_t f = 0; f < features; f++) {
        Vec x = load(state + f * kBlock);
        if (ADD) {
            x += load(update + f * kBlock);
            store(state + f * kBlock, x);
        }
        sum += x;
    }
    const Vec mean = sum / (float)features;
    for (int64_t f = 0; f < features; f++) {
        Vec d = load(state + f * kBlock) - mean;
        squares += d * d;
    }
    Vec variance = squares / (float)features + epsilon, factor;
    for (int i = 0; i < LANES; i++) factor[i] = 1.0f / __builtin_sqrtf(variance[i]);
    for (int64_t f = 0; f < features; f++)
        store(state + f * kBlock, (load(state + f * kBlock) - mean) * factor * scale[f] + shift[f]);
}

void add_norm(float *state, float *update, const float *scale, const float *shift, int64_t features, float epsilon,
              int64_t first_vector, int64_t last_vector) {
    for (int64_t v = first_vector; v < last_vector; v++)
        norm_vector<true>(state + v * LANES, update + v * LANES, scale, shift, features, epsilon);
}

void norm(float *state, const float *scale, const float *shift, int64_t features, float epsilon, int64_t vectors) {
    for (int64_t v = 0; v < vectors; v++)
        norm_vector<false>(state + v * LANES, nullptr, scale, shift, features, epsilon);
}

}  // namespace

extern const Kernels KERNELS = {LANES, kPair, linear, attention, add_norm, norm};

}  // namespace contraprune
