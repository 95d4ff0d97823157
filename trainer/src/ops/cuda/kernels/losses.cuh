// Losses of predictions in `T`; sums, truth and weights are f32.

// Parts of the sum of weights * (x - truth)^2, one a block.
KERNEL(weighted_squares, float* parts, const T* x, const float* truth, const float* weights, size_t n) {
    float sum = 0;
    size_t step = (size_t)gridDim.x * WIDE * HIGH;
    for (size_t at = ((size_t)blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x; at < n; at += step) {
        float error = load(x[at]) - truth[at];
        sum += weights[at] * error * error;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0 && threadIdx.y == 0) parts[blockIdx.x] = sum;
}

// `g` is the gradient of the sum, one number.
KERNEL(weighted_squares_backward, T* x_grad, const T* x, const float* truth, const float* weights, const float* g,
       size_t n) {
    size_t step = (size_t)gridDim.x * WIDE * HIGH;
    for (size_t at = ((size_t)blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x; at < n; at += step)
        store(x_grad[at], 2 * g[0] * weights[at] * (load(x[at]) - truth[at]));
}

// Parts of the sum of cross entropies, times `factor`: a warp does every 8th of a block's `each` rows of logits. Labels
// that are none of the classes are left out.
KERNEL(cross_entropy, float* parts, const T* x, const unsigned* labels, int n, int classes, int each, float factor) {
    float sum = 0;
    int first = blockIdx.x * each;
    for (int row = first + threadIdx.y; row < min(first + each, n); row += HIGH) {
        const T* logits = x + (size_t)row * classes;
        unsigned label = labels[row];
        if (label >= (unsigned)classes) continue;
        float top = -INFINITY, total = 0;
        for (int c = threadIdx.x; c < classes; c += WIDE) top = fmaxf(top, load(logits[c]));
        top = warp_max(top);
        for (int c = threadIdx.x; c < classes; c += WIDE) total += expf(load(logits[c]) - top);
        total = warp_sum(total);
        if (threadIdx.x == 0) sum += (logf(total) + top - load(logits[label])) * factor;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0 && threadIdx.y == 0) parts[blockIdx.x] = sum;
}

// `g` is the gradient of the loss, one number; a warp a row.
KERNEL(cross_entropy_backward, T* x_grad, const T* x, const unsigned* labels, const float* g, int n, int classes,
       float factor) {
    int row = blockIdx.x * HIGH + threadIdx.y;
    if (row >= n) return;
    const T* logits = x + (size_t)row * classes;
    T* grad = x_grad + (size_t)row * classes;
    unsigned label = labels[row];
    bool known = label < (unsigned)classes;
    float top = -INFINITY, total = 0;
    for (int c = threadIdx.x; c < classes; c += WIDE) top = fmaxf(top, load(logits[c]));
    top = warp_max(top);
    for (int c = threadIdx.x; c < classes; c += WIDE) total += expf(load(logits[c]) - top);
    total = warp_sum(total);
    for (int c = threadIdx.x; c < classes; c += WIDE) {
        float share = expf(load(logits[c]) - top) / total - ((unsigned)c == label ? 1 : 0);
        store(grad[c], known ? g[0] * factor * share : 0);
    }
}
