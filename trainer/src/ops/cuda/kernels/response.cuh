// Bias, GELU and Global Response Normalization. GELU is computed anew wherever it is needed: that is cheaper than writing
// it and reading it again.
//
// Where a kernel takes `each`, a group of the normalisation is that many rows: a sample's, or all of the batch.

// The sums over a sample's rows of GELU's squares, [samples, c]. A block does 32 channels of a sample.
KERNEL(gelu_squares, float* squares, const T* h, const float* bias, int rows, int width) {
    int c = blockIdx.y * WIDE + threadIdx.x;
    float sum = 0;
    if (c < width)
        for (int row = threadIdx.y; row < rows; row += HIGH) {
            float v = gelu(load(h[((size_t)blockIdx.x * rows + row) * width + c]) + bias[c]);
            sum += v * v;
        }
    sum = column_sum(sum);
    if (threadIdx.y == 0 && c < width) squares[(size_t)blockIdx.x * width + c] = sum;
}

// out = GELU(h + bias) * factor of the row's group + beta.
KERNEL(gelu_scale, T* out, const T* h, const float* bias, const float* factor, const float* beta, int n, int width,
       int each) {
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE;
    if (c >= width) return;
    for (int row = first + threadIdx.y; row < min(first + WIDE, n); row += HIGH) {
        size_t at = (size_t)row * width + c;
        store(out[at], gelu(load(h[at]) + bias[c]) * factor[(size_t)(row / each) * width + c] + beta[c]);
    }
}

// The sums over a sample's rows of g * GELU and of g, each [samples, c].
KERNEL(gelu_dots, float* dots, float* sums, const T* g, const T* h, const float* bias, int rows, int width) {
    int c = blockIdx.y * WIDE + threadIdx.x;
    float dot = 0, sum = 0;
    if (c < width)
        for (int row = threadIdx.y; row < rows; row += HIGH) {
            size_t at = ((size_t)blockIdx.x * rows + row) * width + c;
            float v = load(g[at]);
            dot += v * gelu(load(h[at]) + bias[c]), sum += v;
        }
    dot = column_sum(dot), sum = column_sum(sum);
    if (threadIdx.y == 0 && c < width) {
        dots[(size_t)blockIdx.x * width + c] = dot;
        sums[(size_t)blockIdx.x * width + c] = sum;
    }
}

// g becomes the gradient of `h`: (g * factor + GELU * along) * GELU's slope; `sums` gets its sums over each sample's
// rows, [samples, c], which are parts of the bias's gradient. `shared` says that one group holds all samples.
KERNEL(gelu_scale_backward, T* g, float* sums, const T* h, const float* bias, const float* factor, const float* along,
       int rows, int width, int shared) {
    int c = blockIdx.y * WIDE + threadIdx.x;
    size_t group = (size_t)(shared ? 0 : blockIdx.x) * width + c;
    float sum = 0;
    if (c < width)
        for (int row = threadIdx.y; row < rows; row += HIGH) {
            size_t at = ((size_t)blockIdx.x * rows + row) * width + c;
            float x = load(h[at]) + bias[c];
            float v = (load(g[at]) * factor[group] + gelu(x) * along[group]) * gelu_slope(x);
            store(g[at], v);
            sum += v;
        }
    sum = column_sum(sum);
    if (threadIdx.y == 0 && c < width) sums[(size_t)blockIdx.x * width + c] = sum;
}
