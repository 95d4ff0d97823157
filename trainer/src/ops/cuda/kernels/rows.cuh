// Kernels over rows: LayerNorm, sums over columns, biases, picking of rows.

// LayerNorm of `x + add`, a warp a row: `mean` and `scale` (one over the deviation) are kept for the way back.
// `add` may be null.
KERNEL(layer_norm, T* y, float* mean, float* scale, const T* x, const float* add, const float* weight,
       const float* bias, int n, int d, float eps) {
    int row = blockIdx.x * HIGH + threadIdx.y;
    if (row >= n) return;
    x += (size_t)row * d, y += (size_t)row * d;
    float sum = 0, squares = 0;
    for (int c = threadIdx.x; c < d; c += WIDE) sum += load(x[c]) + (add ? add[c] : 0);
    float middle = warp_sum(sum) / d;
    for (int c = threadIdx.x; c < d; c += WIDE) {
        float v = load(x[c]) + (add ? add[c] : 0) - middle;
        squares += v * v;
    }
    float factor = 1 / sqrtf(warp_sum(squares) / d + eps);
    for (int c = threadIdx.x; c < d; c += WIDE)
        store(y[c], (load(x[c]) + (add ? add[c] : 0) - middle) * factor * weight[c] + bias[c]);
    if (threadIdx.x == 0) mean[row] = middle, scale[row] = factor;
}

// The gradient of LayerNorm's input from that of its output, `g`.
KERNEL(layer_norm_backward, T* x_grad, const T* g, const T* x, const float* add, const float* mean, const float* scale,
       const float* weight, int n, int d) {
    int row = blockIdx.x * HIGH + threadIdx.y;
    if (row >= n) return;
    x += (size_t)row * d, g += (size_t)row * d, x_grad += (size_t)row * d;
    float middle = mean[row], factor = scale[row], sum = 0, dot = 0;
    for (int c = threadIdx.x; c < d; c += WIDE) {
        float unit = (load(x[c]) + (add ? add[c] : 0) - middle) * factor, v = load(g[c]) * weight[c];
        sum += v, dot += v * unit;
    }
    sum = warp_sum(sum) / d, dot = warp_sum(dot) / d;
    for (int c = threadIdx.x; c < d; c += WIDE) {
        float unit = (load(x[c]) + (add ? add[c] : 0) - middle) * factor;
        store(x_grad[c], factor * (load(g[c]) * weight[c] - sum - unit * dot));
    }
}

// Parts of the gradients of LayerNorm's weight and bias, [parts, 2, d]: a block adds up `each` rows.
KERNEL(layer_norm_sums, float* parts, const T* g, const T* x, const float* add, const float* mean, const float* scale,
       int n, int d, int each) {
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * each;
    float of_weight = 0, of_bias = 0;
    if (c < d)
        for (int row = first + threadIdx.y; row < min(first + each, n); row += HIGH) {
            float v = load(g[(size_t)row * d + c]);
            of_weight += v * (load(x[(size_t)row * d + c]) + (add ? add[c] : 0) - mean[row]) * scale[row];
            of_bias += v;
        }
    of_weight = column_sum(of_weight), of_bias = column_sum(of_bias);
    if (threadIdx.y == 0 && c < d) {
        parts[(size_t)blockIdx.x * 2 * d + c] = of_weight;
        parts[(size_t)blockIdx.x * 2 * d + d + c] = of_bias;
    }
}

// Parts of the sums over the rows, [parts, d]; with `index` over those rows alone whose index is absent.
KERNEL(column_sums, float* parts, const T* x, const unsigned* index, int n, int d, int each) {
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * each;
    float sum = 0;
    if (c < d)
        for (int row = first + threadIdx.y; row < min(first + each, n); row += HIGH)
            if (!index || index[row] == ABSENT) sum += load(x[(size_t)row * d + c]);
    sum = column_sum(sum);
    if (threadIdx.y == 0 && c < d) parts[(size_t)blockIdx.x * d + c] = sum;
}

// out = x + bias for every row; `x` may be null.
KERNEL(add_bias, T* out, const T* x, const float* bias, int n, int d) {
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE;
    if (c >= d) return;
    for (int row = first + threadIdx.y; row < min(first + WIDE, n); row += HIGH) {
        size_t at = (size_t)row * d + c;
        store(out[at], (x ? load(x[at]) : 0) + bias[c]);
    }
}

// Row `i` of the output is row `index[i]` of `x`, or `fill` (zeros if null) where that is absent.
KERNEL(pick, T* out, const T* x, const unsigned* index, const float* fill, int n, int d) {
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE;
    if (c >= d) return;
    for (int row = first + threadIdx.y; row < min(first + WIDE, n); row += HIGH) {
        unsigned from = index[row];
        float v = from != ABSENT ? load(x[(size_t)from * d + c]) : fill ? fill[c] : 0;
        store(out[(size_t)row * d + c], v);
    }
}

// For each of the `n` rows of the coarser map the four rows of the finer one under it, side by side: [n, 4, d]. The grid
// is the finer one.
KERNEL(children, T* out, const T* x, GRID, int coarse_rows, int n, int d) {
    Grid fine = THE_GRID, coarse = {visible, rank, side / 2, shift - 1, kept, coarse_rows};
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE;
    if (c >= d) return;
    for (int at = first + threadIdx.y; at < min(first + WIDE, 4 * n); at += HIGH) {
        int sample, top, left;
        coarse.position(at / 4, sample, top, left);
        int from = fine.row(sample, 2 * top + at % 4 / 2, 2 * left + at % 2);
        out[(size_t)at * d + c] = x[(size_t)from * d + c];
    }
}

// The way back of `children`: each of the `n` finer rows has at most one parent, so nothing is added up.
KERNEL(children_backward, T* x_grad, const T* g, GRID, int coarse_rows, int n, int d) {
    Grid fine = THE_GRID, coarse = {visible, rank, side / 2, shift - 1, kept, coarse_rows};
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE;
    if (c >= d) return;
    for (int row = first + threadIdx.y; row < min(first + WIDE, n); row += HIGH) {
        int sample, y, x;
        fine.position(row, sample, y, x);
        int parent = coarse.row(sample, y / 2, x / 2);
        float v = parent < 0 ? 0 : load(g[((size_t)parent * 4 + y % 2 * 2 + x % 2) * d + c]);
        store(x_grad[(size_t)row * d + c], v);
    }
}

// f32 as `T`.
KERNEL(narrow, T* out, const float* x, int n) {
    int at = (blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x;
    if (at < n) store(out[at], x[at]);
}
