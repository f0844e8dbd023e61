// What the three parts of the engine share: packed matrices, the layout of activations, the table of kernels.
//
// Activations are feature-major in blocks of kBlock tokens: value f of the token in lane t of block b is at
// [(b * (features + kSpareRows) + f) * kBlock + t]. A linear layer then adds multiples of whole rows of tokens, one
// per non-zero weight, whatever the pattern of the zeros. The spare rows take the output of padding in the packing.
#pragma once
#include <cstddef>
#include <cstdint>

namespace contraprune {

constexpr int kBlock = 64;
constexpr int kSpareRows = 4;
constexpr int kBlockRows = 4;    // rows of a 4x1 block
constexpr int kMaxPair = 2;      // rows that the unstructured kernel computes together, at most
constexpr int kChunkRows = 128;  // rows that one thread takes at a time

enum Activation : int32_t { kNone, kGelu, kGeluTanh, kRelu, kTanh, kActivations };

// Rows with equally many weights in one panel of columns (a little padding aside).
struct Group {
    uint32_t count;          // weights (or 4x1 blocks) per row
    uint32_t row[kMaxPair];  // offset of the rows in the output, in floats; of 4x1 blocks the first row's only
};

// The weights of one chunk of rows in one panel of columns.
struct Section {
    size_t group, groups;  // into Matrix::groups
    size_t index, weight;  // into Matrix::index and Matrix::weights
};

struct Matrix {
    int64_t rows, columns;
    bool blocks;    // 4x1 blocks, or (all of them being there) dense
    int64_t pair;   // rows per group: kBlockRows for blocks
    int64_t panel;  // columns per panel, so that a panel of inputs stays in the first-level cache
    int64_t panels, chunks;
    Section *sections;  // chunks x panels
    Group *groups;
    uint16_t *index;  // column within the panel, times kBlock / 2: in units of 8 bytes
    float *weights;
    float *bias;  // rows + kSpareRows
};

// Tokens of block b are start[b] to start[b + 1]; sequences are runs of tokens.
struct Layout {
    int64_t tokens, sequences, blocks;
    const int64_t *block_start;     // blocks + 1
    const int64_t *sequence_start;  // sequences + 1
};

struct Attention {
    int64_t heads, head_size;
    const float *qkv;        // feature-major: queries of all heads, keys of all heads, values of all heads
    float *context;          // feature-major, of one block: heads x head_size
    const float *bias;       // heads x (2 * span - 1) by query minus key position, or null
    int64_t span;
    float *scores;           // scratch of this thread: longest sequence x kBlock
};

// One instruction set's kernels. `vectors` says how many vectors of a block hold tokens.
struct Kernels {
    int64_t lanes;  // floats in a vector
    int64_t pair;   // Matrix::pair of unstructured matrices
    // output = activation(matrix input + bias), or with `add` that added to the output
    void (*linear)(const Matrix &matrix, const float *input, float *output, int64_t vectors, int64_t first_chunk,
                   int64_t last_chunk, bool add, Activation activation);
    void (*attention)(const Attention &attention, const Layout &layout, int64_t block, int64_t first_head,
                      int64_t last_head);
    // state = norm(state) * scale + shift over the features of each token
    void (*norm)(float *state, const float *scale, const float *shift, int64_t features, float epsilon,
                 int64_t first_vector, int64_t last_vector);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace contraprune
