// What all kernels share: bf16, sums over a warp and over the rows of a block, and where the rows of a map lie.

#ifndef KERNEL
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(256) NAME(name)(__VA_ARGS__)
#endif

#define WIDE 32
#define HIGH 8

// The upper half of an f32. An own type instead of cuda_bf16.h: nothing has to be found when this is compiled.
struct bf16 {
    unsigned short bits;
};

__device__ inline float load(float x) { return x; }
__device__ inline float load(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void store(float& to, float x) { to = x; }

// Rounds to nearest, ties to even; not-a-number stays one.
__device__ inline void store(bf16& to, float x) {
    unsigned bits = __float_as_uint(x);
    to.bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The sum over a warp, in all its threads.
__device__ inline float warp_sum(float x) {
    for (int step = WIDE / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = WIDE / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// The sum over the 8 threads of a column of the block; of use in the threads of row 0 alone.
__device__ inline float column_sum(float x) {
    __shared__ float parts[HIGH][WIDE];
    __syncthreads();
    parts[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float sum = 0;
    if (threadIdx.y == 0)
        for (int i = 0; i < HIGH; i++) sum += parts[i][threadIdx.x];
    return sum;
}

// The sum over the whole block, in all its threads.
__device__ inline float block_sum(float x) {
    __shared__ float parts[HIGH];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x == 0) parts[threadIdx.y] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < HIGH; i++) sum += parts[i];
    return sum;
}

// GELU with the error function.
__device__ inline float gelu(float x) { return x * 0.5f * erfcf(-x * 0.70710678f); }

__device__ inline float gelu_slope(float x) {
    return 0.5f * erfcf(-x * 0.70710678f) + x * 0.3989422804f * expf(-0.5f * x * x);
}

// An index that stands for "none".
#define ABSENT 0xffffffffu

// The rows of one stage's map, as `ops::grid::Grid` holds them: patch by patch of `1 << shift` positions a side, hidden
// patches left out. `visible` holds the `kept` visible patches of each sample, `rank` for each patch its place among
// them. With `kept` 0 all positions have a row, in order.
struct Grid {
    const unsigned* visible;
    const unsigned* rank;
    int side, shift, kept, rows;

    // The row of a position, -1 where there is none.
    __device__ int row(int sample, int y, int x) const {
        if (y < 0 || x < 0 || y >= side || x >= side) return -1;
        if (kept == 0) return sample * rows + y * side + x;
        int across = side >> shift, low = (1 << shift) - 1;
        unsigned at = rank[(sample * across + (y >> shift)) * across + (x >> shift)];
        if (at == ABSENT) return -1;
        return sample * rows + (((int)at << 2 * shift) | ((y & low) << shift) | (x & low));
    }

    __device__ void position(int row, int& sample, int& y, int& x) const {
        sample = row / rows;
        int within = row % rows;
        if (kept == 0) {
            y = within / side, x = within % side;
            return;
        }
        int across = side >> shift, low = (1 << shift) - 1;
        int patch = (int)visible[sample * kept + (within >> 2 * shift)];
        y = ((patch / across) << shift) | ((within >> shift) & low);
        x = ((patch % across) << shift) | (within & low);
    }
};

#define GRID const unsigned *visible, const unsigned *rank, int side, int shift, int kept, int rows
#define THE_GRID {visible, rank, side, shift, kept, rows}
