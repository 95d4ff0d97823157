// The 7x7 depthwise convolution over the rows of a map, with zeros around the map and at hidden positions.
//
// A thread computes `RUN` rows that follow each other along a line of the map, for one channel: of the window it reads
// 7 * (RUN + 6) values instead of 49 * RUN. The host chooses RUN so that every run stays within a line and a patch:
// 7 for the maps of 7 positions a side, else 4, 2 or 1.

template <int RUN>
__device__ void NAME(depthwise_run)(T* out, const T* x, const float* weight, const float* bias, const T* start,
                                    const Grid& grid, int first, int c, int d, bool backwards) {
    int sample, top, left;
    grid.position(first, sample, top, left);
    float sums[RUN] = {};
    for (int dy = 0; dy < 7; dy++) {
        float line[RUN + 6];
        for (int i = 0; i < RUN + 6; i++) {
            int row = grid.row(sample, top + dy - 3, left + i - 3);
            line[i] = row < 0 ? 0 : load(x[(size_t)row * d + c]);
        }
        for (int dx = 0; dx < 7; dx++) {
            int tap = dy * 7 + dx;
            float w = weight[(backwards ? 48 - tap : tap) * d + c];
            for (int i = 0; i < RUN; i++) sums[i] += w * line[i + dx];
        }
    }
    for (int i = 0; i < RUN; i++) {
        size_t at = (size_t)(first + i) * d + c;
        store(out[at], sums[i] + (bias ? bias[c] : 0) + (start ? load(start[at]) : 0));
    }
}

// out = start + bias + sum over the taps of weight * x; `weight` is [49, d], `bias` and `start` may be null. Backwards
// (taps in reverse) it gives the gradient of the input. `n` rows, a multiple of `run`.
KERNEL(depthwise, T* out, const T* x, const float* weight, const float* bias, const T* start, GRID, int n, int d,
       int run, int backwards) {
    Grid grid = THE_GRID;
    int c = blockIdx.y * WIDE + threadIdx.x, first = (blockIdx.x * HIGH + threadIdx.y) * run;
    if (c >= d || first >= n) return;
    switch (run) {
    case 7: return NAME(depthwise_run)<7>(out, x, weight, bias, start, grid, first, c, d, backwards);
    case 4: return NAME(depthwise_run)<4>(out, x, weight, bias, start, grid, first, c, d, backwards);
    case 2: return NAME(depthwise_run)<2>(out, x, weight, bias, start, grid, first, c, d, backwards);
    default: return NAME(depthwise_run)<1>(out, x, weight, bias, start, grid, first, c, d, backwards);
    }
}

template <int RUN>
__device__ void NAME(depthwise_taps)(float* taps, const T* g, const T* x, const Grid& grid, int first, int c, int d) {
    int sample, top, left;
    grid.position(first, sample, top, left);
    float slopes[RUN];
    for (int i = 0; i < RUN; i++) {
        slopes[i] = load(g[(size_t)(first + i) * d + c]);
        taps[49] += slopes[i];
    }
#pragma unroll
    for (int dy = 0; dy < 7; dy++) {
        float line[RUN + 6];
        for (int i = 0; i < RUN + 6; i++) {
            int row = grid.row(sample, top + dy - 3, left + i - 3);
            line[i] = row < 0 ? 0 : load(x[(size_t)row * d + c]);
        }
#pragma unroll
        for (int dx = 0; dx < 7; dx++)
            for (int i = 0; i < RUN; i++) taps[dy * 7 + dx] += slopes[i] * line[i + dx];
    }
}

// Parts of the gradients of weight and bias, [parts, 50, d], the bias last: a block adds up `each` runs of rows.
KERNEL(depthwise_sums, float* parts, const T* g, const T* x, GRID, int n, int d, int run, int each) {
    Grid grid = THE_GRID;
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * each;
    float taps[50] = {};
    if (c < d)
        for (int at = first + threadIdx.y; at < min(first + each, n / run); at += HIGH) switch (run) {
            case 7: NAME(depthwise_taps)<7>(taps, g, x, grid, at * 7, c, d); break;
            case 4: NAME(depthwise_taps)<4>(taps, g, x, grid, at * 4, c, d); break;
            case 2: NAME(depthwise_taps)<2>(taps, g, x, grid, at * 2, c, d); break;
            default: NAME(depthwise_taps)<1>(taps, g, x, grid, at, c, d);
            }
#pragma unroll
    for (int tap = 0; tap < 50; tap++) {
        float sum = column_sum(taps[tap]);
        if (threadIdx.y == 0 && c < d) parts[((size_t)blockIdx.x * 50 + tap) * d + c] = sum;
    }
}
