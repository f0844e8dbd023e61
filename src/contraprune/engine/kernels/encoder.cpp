// The encoder as a C library: cp_new, then cp_layer, cp_matrix and cp_vector for its parts, then cp_forward.
//
// No state outside the encoder. Every size and index that comes from outside is checked here again, so that a wrong
// caller gets an error code and not a crash. One call at a time per encoder: the caller sees to it.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "engine.h"
#include "pack.h"
#include "team.h"

using namespace contraprune;

namespace {

enum Status : int32_t { kOk, kNoMemory, kBadSize, kBadIndex, kIncomplete, kNoInstructions };
enum Slot : int32_t { kProjection, kQueriesKeysValues, kAttentionOutput, kFfnInput, kFfnOutput, kMatrices };
enum Part : int32_t {
    kWords, kPositions, kTypes, kEmbeddingScale, kEmbeddingShift, kRelativeBias,
    kAttentionScale, kAttentionShift, kFfnScale, kFfnShift, kParts,
};

constexpr int64_t kTile = 16;  // features that are turned together between tokens' rows and features' rows
constexpr int64_t kMostFeatures = 1 << 20, kMostTokens = 1 << 24, kMostLayers = 1 << 12, kMostThreads = 1 << 10;

struct Sizes {  // as in native.py
    int64_t isa, threads, hidden, embedding, head_size, layers, activation, vocabulary, positions, types, span;
    double epsilon;
};

struct Layer {
    int64_t heads, neurons;
    Matrix matrices[kMatrices];
    float *parts[kParts];
};

struct Call {
    Layout layout;
    const int64_t *ids, *positions, *types;
    float *output;
};

const Kernels *kernels_of(int64_t isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
                   ? &kAvx512
                   : nullptr;
    if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kAvx2 : nullptr;
#endif
    return isa == 0 ? &kPortable : nullptr;
}

struct Buffer {
    float *data = nullptr;
    size_t size = 0;

    // Zeroed, so that lanes without a token stay harmless; 64-byte aligned.
    bool reserve(size_t floats) {
        if (floats <= size) return true;
        free(data);
        size = 0;
        if (posix_memalign((void **)&data, 64, (floats + 16) * sizeof(float)) != 0) {
            data = nullptr;
            return false;
        }
        memset(data, 0, (floats + 16) * sizeof(float));
        size = floats;
        return true;
    }
};

}  // namespace

struct cp_encoder {
    Sizes sizes;
    const Kernels *kernels;
    Layer *layers;
    Layer outer;  // embeddings and projection, in a layer's arrays
    int64_t widest_heads, widest_neurons;
    Buffer states, projections[2], contexts, neurons, embeddings, scores;
    int64_t *block_start;
    int64_t block_capacity;
    int64_t longest;
    Team *team;
    pid_t team_of;
    Call call;
    int64_t groups;  // of threads; a group works through blocks of its own
    Barrier everybody, *within_group;

    Layer *layer(int64_t index) { return index == -1 ? &outer : index >= 0 && index < sizes.layers ? &layers[index] : nullptr; }
};

namespace {

// One thread's view of a call: its blocks and its share of the work on a block.
struct Worker {
    cp_encoder &e;
    int64_t group, member, members;

    int64_t vectors(int64_t block) const {
        const int64_t tokens = e.call.layout.block_start[block + 1] - e.call.layout.block_start[block];
        return (tokens + e.kernels->lanes - 1) / e.kernels->lanes;
    }
    int64_t begin(int64_t items) const { return items * member / members; }
    int64_t end(int64_t items) const { return items * (member + 1) / members; }
    void meet() { e.within_group[group].wait(); }
    // Rows of a block in a buffer, or of a group in a buffer of which each group has one block.
    static float *at(const Buffer &buffer, int64_t block, int64_t features) {
        return buffer.data + (size_t)block * (size_t)(features + kSpareRows) * kBlock;
    }

    void linear(const Matrix &matrix, const float *input, float *output, int64_t block, Activation activation) {
        e.kernels->linear(matrix, input, output, vectors(block), begin(matrix.chunks), end(matrix.chunks), false,
                          activation);
        meet();
    }
    void add_linear(const Matrix &matrix, const float *input, float *output, int64_t block) {
        e.kernels->linear(matrix, input, output, vectors(block), begin(matrix.chunks), end(matrix.chunks), true, kNone);
        meet();
    }
    void norm(float *state, const float *scale, const float *shift, int64_t features, int64_t block) {
        e.kernels->norm(state, scale, shift, features, (float)e.sizes.epsilon, begin(vectors(block)),
                        end(vectors(block)));
        meet();
    }
    static int64_t tiles(int64_t features) { return (features + kTile - 1) / kTile; }
    void embed(int64_t block);
    void project(const Layer &layer, const Buffer &projections, int64_t block);
    void layer(const Layer &layer, const Buffer &projections, int64_t block, int64_t thread);
    void emit(int64_t block);
};

void Worker::embed(int64_t block) {
    const Sizes &s = e.sizes;
    const Layout &layout = e.call.layout;
    const bool projected = e.outer.matrices[kProjection].sections != nullptr;
    float *state = at(e.states, block, s.hidden), *embedded = projected ? at(e.embeddings, block, s.embedding) : state;
    const int64_t first = layout.block_start[block], tokens = layout.block_start[block + 1] - first;
    const int64_t lanes = vectors(block) * e.kernels->lanes;
    for (int64_t f = begin(tiles(s.embedding)) * kTile; f < end(tiles(s.embedding)) * kTile; f += kTile) {
        const int64_t features = s.embedding - f < kTile ? s.embedding - f : kTile;
        float sums[kBlock][kTile];
        for (int64_t lane = 0; lane < lanes; lane++) {  // lanes without a token repeat the last one
            const int64_t token = first + (lane < tokens ? lane : tokens - 1);
            const float *word = e.outer.parts[kWords] + e.call.ids[token] * s.embedding + f;
            const float *place = e.outer.parts[kPositions] + e.call.positions[token] * s.embedding + f;
            for (int64_t i = 0; i < features; i++) sums[lane][i] = word[i] + place[i];
            if (s.types == 0) continue;
            const float *type = e.outer.parts[kTypes] + e.call.types[token] * s.embedding + f;
            for (int64_t i = 0; i < features; i++) sums[lane][i] += type[i];
        }
        for (int64_t i = 0; i < features; i++)
            for (int64_t lane = 0; lane < lanes; lane++) embedded[(f + i) * kBlock + lane] = sums[lane][i];
    }
    meet();
    norm(embedded, e.outer.parts[kEmbeddingScale], e.outer.parts[kEmbeddingShift], s.embedding, block);
    if (projected) linear(e.outer.matrices[kProjection], embedded, state, block, kNone);
}

void Worker::project(const Layer &layer, const Buffer &projections, int64_t block) {
    linear(layer.matrices[kQueriesKeysValues], at(e.states, block, e.sizes.hidden),
           at(projections, block, 3 * layer.heads * e.sizes.head_size), block, kNone);
}

// A layer from its attention on: queries, keys and values of all blocks it looks at are there.
void Worker::layer(const Layer &layer, const Buffer &projections, int64_t block, int64_t thread) {
    const Sizes &s = e.sizes;
    float *state = at(e.states, block, s.hidden);
    float *context = at(e.contexts, group, e.widest_heads * s.head_size), *neurons = at(e.neurons, group, e.widest_neurons);
    Attention attention = {
        layer.heads, s.head_size, projections.data, context, layer.parts[kRelativeBias], s.span,
        e.scores.data + thread * e.longest * kBlock,
    };
    e.kernels->attention(attention, e.call.layout, block, begin(layer.heads), end(layer.heads));
    meet();
    add_linear(layer.matrices[kAttentionOutput], context, state, block);
    norm(state, layer.parts[kAttentionScale], layer.parts[kAttentionShift], s.hidden, block);
    linear(layer.matrices[kFfnInput], state, neurons, block, (Activation)s.activation);
    add_linear(layer.matrices[kFfnOutput], neurons, state, block);
    norm(state, layer.parts[kFfnScale], layer.parts[kFfnShift], s.hidden, block);
}

void Worker::emit(int64_t block) {
    const Layout &layout = e.call.layout;
    const int64_t hidden = e.sizes.hidden, first = layout.block_start[block];
    const int64_t tokens = layout.block_start[block + 1] - first;
    const float *state = at(e.states, block, hidden);
    for (int64_t f = begin(tiles(hidden)) * kTile; f < end(tiles(hidden)) * kTile; f += kTile) {
        const int64_t past = hidden - f < kTile ? hidden : f + kTile;
        for (int64_t lane = 0; lane < tokens; lane++)
            for (int64_t i = f; i < past; i++) e.call.output[(first + lane) * hidden + i] = state[i * kBlock + lane];
    }
}

// The blocks of one group, and which of them hold tokens of sequences that other groups look at too: the first and the
// last ones, as sequences lie one after the other.
struct Share {
    int64_t begin, front, back, end;  // [begin, front) and [back, end) are looked at

    Share(const Layout &layout, int64_t group, int64_t groups) {
        begin = front = layout.blocks * group / groups;
        back = end = layout.blocks * (group + 1) / groups;
        for (int64_t s = 0; s < layout.sequences; s++) {
            const int64_t first = layout.sequence_start[s], past = layout.sequence_start[s + 1];
            const int64_t low = layout.block_start[begin], high = layout.block_start[end];
            if (first < low && past > low)
                while (front < end && layout.block_start[front] < past) front++;
            if (first < high && past > high)
                while (back > begin && layout.block_start[back] > first) back--;
        }
        if (back < front) back = front;
    }
};

// All blocks go through a layer before the next one, so that its weights are read once. Within it a block's queries,
// keys and values are computed shortly before they are read; before all, those that other groups read.
void work(void *context, int64_t thread) {
    cp_encoder &e = *(cp_encoder *)context;
    const int64_t threads = e.team->size();
    const int64_t group = thread * e.groups / threads;  // the smallest thread of group g is ceil(g * threads / groups)
    const int64_t first = (group * threads + e.groups - 1) / e.groups;
    const int64_t past = ((group + 1) * threads + e.groups - 1) / e.groups;
    Worker worker = {e, group, thread - first, past - first};
    const Layout &layout = e.call.layout;
    const Share share(layout, group, e.groups);
    for (int64_t b = share.begin; b < share.end; b++) worker.embed(b);
    for (int64_t l = 0; l < e.sizes.layers; l++) {
        const Layer &layer = e.layers[l];
        // Two buffers in turn: while one group still reads a layer's keys, others may write the next layer's.
        const Buffer &projections = e.projections[e.groups > 1 ? l % 2 : 0];
        for (int64_t b = share.begin; b < share.front; b++) worker.project(layer, projections, b);
        for (int64_t b = share.back; b < share.end; b++) worker.project(layer, projections, b);
        e.everybody.wait();
        int64_t sequence = 0, projected = share.front;
        for (int64_t b = share.begin; b < share.end; b++) {
            while (layout.sequence_start[sequence + 1] < layout.block_start[b + 1]) sequence++;
            const int64_t needed = layout.sequence_start[sequence + 1];  // tokens up to the last one looked at
            for (; projected < share.back && layout.block_start[projected] < needed; projected++)
                worker.project(layer, projections, projected);
            worker.layer(layer, projections, b, thread);
        }
    }
    for (int64_t b = share.begin; b < share.end; b++) worker.emit(b);
}

// Splits the tokens evenly into blocks of at most kBlock, as many as a multiple of the threads where there are enough.
Status lay_out(cp_encoder &e, int64_t tokens) {
    const int64_t lanes = e.kernels->lanes, threads = e.team->size();
    const int64_t vectors = (tokens + lanes - 1) / lanes, per_block = kBlock / lanes;
    int64_t blocks = (vectors + per_block - 1) / per_block;
    if (vectors >= threads) {
        blocks = (blocks + threads - 1) / threads * threads;
        if (blocks > vectors) blocks = vectors;
    }
    if (blocks >= e.block_capacity) {
        int64_t *grown = (int64_t *)realloc(e.block_start, (size_t)(blocks + 1) * sizeof(int64_t));
        if (grown == nullptr) return kNoMemory;
        e.block_start = grown;
        e.block_capacity = blocks + 1;
    }
    for (int64_t b = 0; b <= blocks; b++) {
        const int64_t start = vectors * b / blocks * lanes;
        e.block_start[b] = start < tokens ? start : tokens;
    }
    e.call.layout.blocks = blocks;
    e.call.layout.block_start = e.block_start;
    return kOk;
}

Status reserve(cp_encoder &e) {
    const Sizes &s = e.sizes;
    const size_t blocks = (size_t)e.call.layout.blocks * kBlock, groups = (size_t)e.groups * kBlock;
    const size_t heads = (size_t)(e.widest_heads * s.head_size);
    const bool ok = e.states.reserve(blocks * (size_t)(s.hidden + kSpareRows)) &&
                    e.projections[0].reserve(blocks * (3 * heads + kSpareRows)) &&
                    (e.groups == 1 || e.projections[1].reserve(blocks * (3 * heads + kSpareRows))) &&
                    e.contexts.reserve(groups * (heads + kSpareRows)) &&
                    e.neurons.reserve(groups * (size_t)(e.widest_neurons + kSpareRows)) &&
                    e.embeddings.reserve(blocks * (size_t)(s.embedding + kSpareRows)) &&
                    e.scores.reserve((size_t)e.team->size() * (size_t)e.longest * kBlock);
    return ok ? kOk : kNoMemory;
}

bool within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

Status check(const cp_encoder &e, const Call &call) {
    const Layout &layout = call.layout;
    if (!within(layout.tokens, 1, kMostTokens) || !within(layout.sequences, 1, layout.tokens)) return kBadSize;
    if (layout.sequence_start[0] != 0 || layout.sequence_start[layout.sequences] != layout.tokens) return kBadSize;
    for (int64_t i = 0; i < layout.sequences; i++) {
        const int64_t length = layout.sequence_start[i + 1] - layout.sequence_start[i];
        if (length < 1 || (e.sizes.span > 0 && length > e.sizes.span)) return kBadSize;
    }
    for (int64_t i = 0; i < layout.tokens; i++)
        if (!within(call.ids[i], 0, e.sizes.vocabulary - 1) || !within(call.positions[i], 0, e.sizes.positions - 1) ||
            (e.sizes.types > 0 && !within(call.types[i], 0, e.sizes.types - 1)))
            return kBadIndex;
    return kOk;
}

Status complete(const cp_encoder &e) {
    for (int part = kWords; part <= kEmbeddingShift; part++)
        if (e.outer.parts[part] == nullptr && (part != kTypes || e.sizes.types > 0)) return kIncomplete;
    if (e.outer.matrices[kProjection].sections == nullptr && e.sizes.embedding != e.sizes.hidden) return kIncomplete;
    for (int64_t l = 0; l < e.sizes.layers; l++) {
        for (int slot = kQueriesKeysValues; slot < kMatrices; slot++)
            if (e.layers[l].matrices[slot].sections == nullptr) return kIncomplete;
        for (int part = kAttentionScale; part < kParts; part++)
            if (e.layers[l].parts[part] == nullptr) return kIncomplete;
        if (e.sizes.span > 0 && e.layers[l].heads > 0 && e.layers[l].parts[kRelativeBias] == nullptr) return kIncomplete;
    }
    return kOk;
}

// Threads do not survive a fork: the child starts its own, and leaves what it cannot join.
bool ensure_team(cp_encoder &e) {
    if (e.team != nullptr && e.team_of == getpid()) return true;
    Team *team = (Team *)malloc(sizeof(Team));
    Barrier *barriers = (Barrier *)malloc((size_t)e.sizes.threads * sizeof(Barrier));
    if (team == nullptr || barriers == nullptr) {
        free(team);
        free(barriers);
        return false;
    }
    for (int64_t i = 0; i < e.sizes.threads; i++) new (&barriers[i]) Barrier();
    free(e.within_group);
    e.within_group = barriers;
    e.team = new (team) Team();
    e.team_of = getpid();
    e.team->start(e.sizes.threads);
    return true;
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// Whether this machine has an instruction set: 0 portable, 1 AVX2, 2 AVX-512.
EXPORT int32_t cp_supports(int64_t isa) { return kernels_of(isa) != nullptr; }

EXPORT cp_encoder *cp_new(const Sizes *sizes, int32_t *status) {
    const Sizes &s = *sizes;
    *status = kernels_of(s.isa) == nullptr ? kNoInstructions : kOk;
    if (*status != kOk) return nullptr;
    const bool ok = within(s.threads, 1, kMostThreads) && within(s.hidden, 1, kMostFeatures) &&
                    within(s.embedding, 1, kMostFeatures) && within(s.head_size, 1, kMostFeatures) &&
                    within(s.layers, 0, kMostLayers) && within(s.activation, 0, kActivations - 1) &&
                    within(s.vocabulary, 1, INT32_MAX) && within(s.positions, 1, INT32_MAX) &&
                    within(s.types, 0, INT32_MAX) && within(s.span, 0, kMostTokens);
    cp_encoder *e = ok ? (cp_encoder *)calloc(1, sizeof(cp_encoder)) : nullptr;
    if (e != nullptr) {
        new (e) cp_encoder();
        e->sizes = s;
        e->kernels = kernels_of(s.isa);
        e->layers = (Layer *)calloc((size_t)s.layers + 1, sizeof(Layer));
    }
    if (e == nullptr || e->layers == nullptr) {
        *status = ok ? kNoMemory : kBadSize;
        free(e);
        return nullptr;
    }
    return e;
}

EXPORT void cp_free(cp_encoder *e) {
    if (e == nullptr) return;
    if (e->team != nullptr && e->team_of == getpid()) {
        e->team->stop();
        free(e->team);
    }
    for (int64_t l = -1; l < e->sizes.layers; l++) {
        for (Matrix &matrix : e->layer(l)->matrices) release(matrix);
        for (float *part : e->layer(l)->parts) free(part);
    }
    Buffer *buffers[] = {&e->states, &e->projections[0], &e->projections[1], &e->contexts, &e->neurons,
                         &e->embeddings, &e->scores};
    for (Buffer *buffer : buffers) free(buffer->data);
    free(e->within_group);
    free(e->block_start);
    free(e->layers);
    free(e);
}

EXPORT int32_t cp_layer(cp_encoder *e, int64_t index, int64_t heads, int64_t neurons) {
    Layer *layer = index < 0 ? nullptr : e->layer(index);
    if (layer == nullptr || !within(heads, 0, kMostFeatures / (3 * e->sizes.head_size)) ||
        !within(neurons, 0, kMostFeatures))
        return kBadSize;
    layer->heads = heads;
    layer->neurons = neurons;
    if (heads > e->widest_heads) e->widest_heads = heads;
    if (neurons > e->widest_neurons) e->widest_neurons = neurons;
    return kOk;
}

// Row-major weights and their bias; layer -1 is the projection of the embeddings.
EXPORT int32_t cp_matrix(cp_encoder *e, int64_t index, int32_t slot, int64_t rows, int64_t columns,
                         const float *weights, const float *bias) {
    Layer *layer = e->layer(index);
    if (layer == nullptr || (index == -1) != (slot == kProjection)) return kBadSize;
    const int64_t hidden = e->sizes.hidden, width = layer->heads * e->sizes.head_size;
    int64_t expected[2];
    switch (slot) {
        case kProjection: expected[0] = hidden, expected[1] = e->sizes.embedding; break;
        case kQueriesKeysValues: expected[0] = 3 * width, expected[1] = hidden; break;
        case kAttentionOutput: expected[0] = hidden, expected[1] = width; break;
        case kFfnInput: expected[0] = layer->neurons, expected[1] = hidden; break;
        case kFfnOutput: expected[0] = hidden, expected[1] = layer->neurons; break;
        default: return kBadSize;
    }
    if (rows != expected[0] || columns != expected[1]) return kBadSize;
    release(layer->matrices[slot]);
    if (pack(layer->matrices[slot], weights, bias, rows, columns, e->kernels->pair)) return kOk;
    release(layer->matrices[slot]);
    return kNoMemory;
}

EXPORT int32_t cp_vector(cp_encoder *e, int64_t index, int32_t part, int64_t size, const float *values) {
    Layer *layer = e->layer(index);
    const Sizes &s = e->sizes;
    if (layer == nullptr || !within(part, 0, kParts - 1) || (index == -1) != (part <= kEmbeddingShift)) return kBadSize;
    int64_t expected = s.hidden;
    switch (part) {
        case kWords: expected = s.vocabulary * s.embedding; break;
        case kPositions: expected = s.positions * s.embedding; break;
        case kTypes: expected = s.types * s.embedding; break;
        case kEmbeddingScale: case kEmbeddingShift: expected = s.embedding; break;
        case kRelativeBias: expected = s.span > 0 ? layer->heads * (2 * s.span - 1) : -1; break;
        default: break;
    }
    if (size != expected) return kBadSize;
    free(layer->parts[part]);
    layer->parts[part] = (float *)malloc(((size_t)size + 1) * sizeof(float));
    if (layer->parts[part] == nullptr) return kNoMemory;
    if (size > 0) memcpy(layer->parts[part], values, (size_t)size * sizeof(float));
    return kOk;
}

// Last hidden states (tokens x hidden) of sequences that follow each other without padding.
EXPORT int32_t cp_forward(cp_encoder *e, int64_t tokens, int64_t sequences, const int64_t *sequence_start,
                          const int64_t *ids, const int64_t *positions, const int64_t *types, float *output) {
    e->call = Call();
    e->call.layout.tokens = tokens;
    e->call.layout.sequences = sequences;
    e->call.layout.sequence_start = sequence_start;
    e->call.ids = ids;
    e->call.positions = positions;
    e->call.types = types;
    e->call.output = output;
    Status status = complete(*e);
    if (status == kOk) status = check(*e, e->call);
    if (status == kOk && !ensure_team(*e)) status = kNoMemory;
    if (status == kOk) status = lay_out(*e, tokens);
    if (status != kOk) return status;
    e->longest = 0;
    for (int64_t i = 0; i < sequences; i++) {
        const int64_t length = sequence_start[i + 1] - sequence_start[i];
        if (length > e->longest) e->longest = length;
    }
    const int64_t threads = e->team->size(), blocks = e->call.layout.blocks;
    e->groups = blocks < threads ? blocks : threads;
    for (int64_t g = 0; g < e->groups; g++)
        e->within_group[g].set((((g + 1) * threads + e->groups - 1) / e->groups) -
                               ((g * threads + e->groups - 1) / e->groups));
    e->everybody.set(threads);
    status = reserve(*e);
    if (status == kOk) e->team->run(work, e);
    return status;
}

}  // extern "C"
