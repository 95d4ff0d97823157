// Kernels on f32 alone: sums of parts, reordering of weights, the factors of Global Response Normalization, AdamW.

// out[i] = the sum over p of parts[p * stride + i], in the order of p.
KERNEL(sum_parts, float* out, const float* parts, int count, int n, int stride) {
    int at = (blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x;
    if (at >= n) return;
    float sum = 0;
    for (int part = 0; part < count; part++) sum += parts[(size_t)part * stride + at];
    out[at] = sum;
}

// [a, b, c] as [a, c, b]; `n` values in all.
KERNEL(swap_last, float* out, const float* x, int b, int c, int n) {
    int at = (blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x;
    if (at >= n) return;
    int inner = at % (b * c);
    out[at] = x[at - inner + inner % b * c + inner / b];
}

// For one group a block: `squares` becomes the norms, `mean` gets their mean plus eps, and `factor` is 1 + gamma * norm /
// mean.
KERNEL(response, float* squares, float* mean, float* factor, const float* gamma, int width, float eps) {
    squares += (size_t)blockIdx.x * width, factor += (size_t)blockIdx.x * width;
    int first = threadIdx.y * WIDE + threadIdx.x;
    float sum = 0;
    for (int c = first; c < width; c += WIDE * HIGH) sum += squares[c] = sqrtf(squares[c]);
    float middle = block_sum(sum) / width + eps;
    for (int c = first; c < width; c += WIDE * HIGH) factor[c] = 1 + gamma[c] * squares[c] / middle;
    if (first == 0) mean[blockIdx.x] = middle;
}

// For one group a block: `dots` (the sums of gradient times GELU) becomes the group's part of gamma's gradient, and
// `along` the factor by which GELU enters its own gradient through the norms. The root has no derivative at 0; there the
// norm is taken as constant.
KERNEL(response_backward, float* dots, float* along, const float* norm, const float* mean, const float* gamma,
       int width) {
    size_t from = (size_t)blockIdx.x * width;
    int first = threadIdx.y * WIDE + threadIdx.x;
    float sum = 0, middle = mean[blockIdx.x];
    for (int c = first; c < width; c += WIDE * HIGH) sum += gamma[c] * dots[from + c] * norm[from + c] / middle;
    float shared = block_sum(sum) / width;
    for (int c = first; c < width; c += WIDE * HIGH) {
        float dot = dots[from + c], own = norm[from + c];
        along[from + c] = own == 0 ? 0 : (gamma[c] * dot - shared) / (middle * own);
        dots[from + c] = dot * own / middle;
    }
}

// A moment becomes `keep` times itself plus `add` times the gradient, or its square.
KERNEL(adamw_moment, float* moment, const float* g, float keep, float add, int square, int n) {
    int at = (blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x;
    if (at < n) moment[at] = moment[at] * keep + add * (square ? g[at] * g[at] : g[at]);
}

// A parameter becomes `keep` times itself less `rate` times mean over (root of square * `root` + eps).
KERNEL(adamw_update, float* p, const float* mean, const float* square, float keep, float rate, float root, float eps,
       int n) {
    int at = (blockIdx.x * HIGH + threadIdx.y) * WIDE + threadIdx.x;
    if (at < n) p[at] = p[at] * keep - rate * mean[at] / (sqrtf(square[at]) * root + eps);
}
