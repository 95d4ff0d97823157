// The initial 3x3 convolution's columns, and GELU with the stem's depthwise convolution of stride `k` and kernel k x k.
//
// A site is a position of the initial convolution's map under some row; the sites of a row follow each other in the
// order of the stem's taps. A site outside of that map (`initial` positions a side) is the stem's padding.

#define STEM int k, int stem_padding, int initial

__device__ inline bool NAME(site)(const Grid& grid, int site, STEM, int& sample, int& y, int& x) {
    int taps = k * k, tap = site % taps;
    grid.position(site / taps, sample, y, x);
    y = y * k + tap / k - stem_padding, x = x * k + tap % k - stem_padding;
    return y >= 0 && x >= 0 && y < initial && x < initial;
}

// What the initial convolution sees, [sites, 9 * bands] as (tap, band), from tiles [batch, bands, tile, tile]. Pixels of
// hidden patches are 0.
KERNEL(stem_columns, T* out, const T* tiles, GRID, STEM, int padding, int tile, int bands, int sites) {
    Grid grid = THE_GRID;
    int at = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE, width = 9 * bands;
    if (at >= width) return;
    int tap = at / bands, band = at % bands;
    for (int site = first + threadIdx.y; site < min(first + WIDE, sites); site += HIGH) {
        int sample, y, x;
        float v = 0;
        if (NAME(site)(grid, site, k, stem_padding, initial, sample, y, x)) {
            y += tap / 3 - padding, x += tap % 3 - padding;
            bool inside = y >= 0 && x >= 0 && y < tile && x < tile;
            if (inside && (kept == 0 || grid.row(sample, y / k, x / k) >= 0))
                v = load(tiles[(((size_t)sample * bands + band) * tile + y) * tile + x]);
        }
        store(out[(size_t)site * width + at], v);
    }
}

// out = bias + sum over a row's sites of weight * GELU(u); `weight` is [k * k, d].
KERNEL(stem_forward, T* out, const T* u, const float* weight, const float* bias, GRID, STEM, int n, int d) {
    Grid grid = THE_GRID;
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE, taps = k * k;
    if (c >= d) return;
    for (int row = first + threadIdx.y; row < min(first + WIDE, n); row += HIGH) {
        float sum = bias[c];
        for (int tap = 0; tap < taps; tap++) {
            int site = row * taps + tap, sample, y, x;
            if (NAME(site)(grid, site, k, stem_padding, initial, sample, y, x))
                sum += weight[tap * d + c] * gelu(load(u[(size_t)site * d + c]));
        }
        store(out[(size_t)row * d + c], sum);
    }
}

// u becomes its own gradient: g * weight * GELU's slope, 0 where there is no site.
KERNEL(stem_backward, T* u, const T* g, const float* weight, GRID, STEM, int sites, int d) {
    Grid grid = THE_GRID;
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * WIDE, taps = k * k;
    if (c >= d) return;
    for (int site = first + threadIdx.y; site < min(first + WIDE, sites); site += HIGH) {
        int sample, y, x;
        float v = 0;
        if (NAME(site)(grid, site, k, stem_padding, initial, sample, y, x))
            v = load(g[(size_t)(site / taps) * d + c]) * weight[site % taps * d + c] *
                gelu_slope(load(u[(size_t)site * d + c]));
        store(u[(size_t)site * d + c], v);
    }
}

// Parts of the gradients of the stem's weight and bias, [parts, k * k + 1, d], the bias last: a block adds up `each`
// rows.
KERNEL(stem_sums, float* parts, const T* g, const T* u, GRID, STEM, int n, int d, int each) {
    Grid grid = THE_GRID;
    int c = blockIdx.y * WIDE + threadIdx.x, first = blockIdx.x * each, taps = k * k;
    for (int tap = 0; tap <= taps; tap++) {
        float sum = 0;
        if (c < d)
            for (int row = first + threadIdx.y; row < min(first + each, n); row += HIGH) {
                float v = load(g[(size_t)row * d + c]);
                int site = row * taps + tap, sample, y, x;
                if (tap == taps)
                    sum += v;
                else if (NAME(site)(grid, site, k, stem_padding, initial, sample, y, x))
                    sum += v * gelu(load(u[(size_t)site * d + c]));
            }
        sum = column_sum(sum);
        if (threadIdx.y == 0 && c < d) parts[((size_t)blockIdx.x * (taps + 1) + tap) * d + c] = sum;
    }
}

#undef STEM
