#pragma once
#include "engine.h"

namespace contraprune {

// Packs rows x columns weights (row-major) and a bias (or null). `pair` is that of the kernels.
// False: out of memory; release the matrix either way.
bool pack(Matrix &matrix, const float *weights, const float *bias, int64_t rows, int64_t columns, int64_t pair);
void release(Matrix &matrix);

}  // namespace contraprune
