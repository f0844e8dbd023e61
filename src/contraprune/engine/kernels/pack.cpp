// Packing a weight matrix for the kernels of kernels.cpp.
#include "pack.h"

#include <cstdlib>
#include <cstring>

namespace contraprune {
namespace {

constexpr double kDenseAbove = 0.45;   // of unstructured weights: from here on computing zeros too is faster
constexpr double kBlockFill = 0.4;     // likewise for the share of non-zero weights in non-zero 4x1 blocks
constexpr int64_t kShortestPanel = 128, kLongestPanel = 2048;  // columns
// Of a row, so that loading and storing the output is worth it; blocks need their inputs less often.
constexpr double kWeightsPerPanel = 16, kBlocksPerPanel = 48;

struct Range {
    int64_t begin, end;
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Weights of a row (or 4x1 blocks of four rows) that are kept in a range of columns.
struct Pattern {
    const float *weights;
    int64_t rows, columns;
    bool blocks, dense;

    bool kept(int64_t row, int64_t column) const {
        if (dense) return true;
        if (!blocks) return weights[row * columns + column] != 0;
        for (int64_t r = row; r < smaller(row + kBlockRows, rows); r++)
            if (weights[r * columns + column] != 0) return true;
        return false;
    }
    uint32_t count(int64_t row, Range range) const {
        if (row >= rows) return 0;
        uint32_t count = 0;
        for (int64_t column = range.begin; column < range.end; column++) count += kept(row, column);
        return count;
    }
};

struct Row {
    int64_t row;
    uint32_t count;
};

int fewer(const void *a, const void *b) {
    const Row *x = (const Row *)a, *y = (const Row *)b;
    if (x->count != y->count) return x->count < y->count ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

// Writes the section of a chunk and panel at the given places, or only measures it where `matrix` has no room yet.
void pack_section(Matrix &matrix, const Pattern &pattern, Range chunk, Range panel, Section &section, bool write) {
    const int64_t step = matrix.blocks ? kBlockRows : 1, pair = matrix.blocks ? 1 : matrix.pair;
    Row rows[kChunkRows + kMaxPair];
    int64_t n = 0;
    for (int64_t row = chunk.begin; row < chunk.end; row += step) rows[n++] = {row, pattern.count(row, panel)};
    for (int64_t spare = matrix.rows; n % pair != 0; spare++) rows[n++] = {spare, 0};
    qsort(rows, (size_t)n, sizeof(Row), fewer);  // runs of equal counts: loops whose end is predicted
    size_t index = section.index, weight = section.weight;
    section.groups = (size_t)(n / pair);
    for (int64_t g = 0; g < n / pair; g++) {
        const Row *members = rows + g * pair;
        const uint32_t count = members[pair - 1].count;
        if (write) {
            Group &group = matrix.groups[section.group + (size_t)g];
            group.count = count;
            for (int64_t m = 0; m < kMaxPair; m++)
                group.row[m] = (uint32_t)(members[m < pair ? m : 0].row * kBlock);
            for (int64_t m = 0; m < pair; m++) {
                uint32_t at = 0;
                for (int64_t column = panel.begin; members[m].row < matrix.rows && column < panel.end; column++) {
                    if (!pattern.kept(members[m].row, column)) continue;
                    matrix.index[index + at * pair + m] = (uint16_t)((column - panel.begin) * (kBlock / 2));
                    for (int64_t r = 0; r < step; r++) {
                        int64_t row = members[m].row + r;
                        matrix.weights[weight + (at * pair + m) * step + r] =
                            row < matrix.rows ? pattern.weights[row * matrix.columns + column] : 0.0f;
                    }
                    at++;
                }
                for (; at < count; at++) matrix.index[index + at * pair + m] = 0;  // its weight is zero
            }
        }
        index += count * (size_t)pair;
        weight += count * (size_t)(pair * step);
    }
    section.index = index;
    section.weight = weight;
}

}  // namespace

bool pack(Matrix &matrix, const float *weights, const float *bias, int64_t rows, int64_t columns, int64_t pair) {
    Pattern pattern = {weights, rows, columns, true, false};
    size_t nonzeros = 0, blocks = 0;
    for (int64_t i = 0; i < rows * columns; i++) nonzeros += weights[i] != 0;
    for (int64_t row = 0; row < rows; row += kBlockRows) blocks += pattern.count(row, {0, columns});
    const double size = (double)rows * (double)columns;
    const bool as_blocks = (double)nonzeros >= kBlockFill * kBlockRows * (double)blocks;
    pattern.dense = (double)nonzeros >= kDenseAbove * size;
    pattern.blocks = pattern.dense || as_blocks;
    const double density = pattern.dense ? 1.0
                           : as_blocks   ? (double)blocks * kBlockRows / (size + 1)
                                         : (double)nonzeros / (size + 1);
    matrix = Matrix();
    matrix.rows = rows;
    matrix.columns = columns;
    matrix.blocks = pattern.blocks;
    matrix.pair = pair;
    matrix.panel = kLongestPanel;
    const double per_panel = pattern.blocks ? kBlocksPerPanel : kWeightsPerPanel;
    if (density * (double)kLongestPanel > per_panel) matrix.panel = ((int64_t)(per_panel / density) + 31) / 32 * 32;
    if (matrix.panel < kShortestPanel) matrix.panel = kShortestPanel;
    matrix.panels = columns > matrix.panel ? (columns + matrix.panel - 1) / matrix.panel : 1;
    matrix.chunks = (rows + kChunkRows - 1) / kChunkRows;
    const size_t sections = (size_t)(matrix.panels * matrix.chunks);
    matrix.sections = (Section *)calloc(sections + 1, sizeof(Section));
    matrix.bias = (float *)calloc((size_t)rows + kSpareRows, sizeof(float));
    if (matrix.sections == nullptr || matrix.bias == nullptr) return false;
    if (bias != nullptr) memcpy(matrix.bias, bias, (size_t)rows * sizeof(float));
    for (int write = 0; write < 2; write++) {
        Section next = Section();
        for (int64_t chunk = 0; chunk < matrix.chunks; chunk++)
            for (int64_t panel = 0; panel < matrix.panels; panel++) {
                Section begin = next;
                pack_section(matrix, pattern,
                             {chunk * kChunkRows, smaller(rows, (chunk + 1) * kChunkRows)},
                             {panel * matrix.panel, smaller(columns, (panel + 1) * matrix.panel)}, next, write != 0);
                begin.groups = next.groups;
                next.group = begin.group + next.groups;
                matrix.sections[chunk * matrix.panels + panel] = begin;
            }
        if (write != 0) break;
        matrix.groups = (Group *)calloc(next.group + 1, sizeof(Group));
        matrix.index = (uint16_t *)calloc(next.index + 1, sizeof(uint16_t));
        matrix.weights = (float *)calloc(next.weight + 1, sizeof(float));
        if (matrix.groups == nullptr || matrix.index == nullptr || matrix.weights == nullptr) return false;
    }
    return true;
}

void release(Matrix &matrix) {
    free(matrix.sections);
    free(matrix.groups);
    free(matrix.index);
    free(matrix.weights);
    free(matrix.bias);
    matrix = Matrix();
}

}  // namespace contraprune
