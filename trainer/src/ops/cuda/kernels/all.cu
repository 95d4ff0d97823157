// All kernels, once for values stored in f32 and once for values stored in bf16.
//
// Every kernel runs in blocks of 32 x 8 threads: 32 channels (or one warp a row) wide, 8 rows high. Arithmetic is in f32
// throughout; `T` is only how values lie in memory. No sum uses atomics: what several blocks add up is written as parts,
// which `sum_parts` adds in their order, so that results are the same from run to run.
//
// The sources are plain enough to be compiled as C++ too: the tests do that, with emulate.h in place of CUDA.

#include "common.cuh"

#define T float
#define NAME(name) name##_f32
#include "rows.cuh"
#include "depthwise.cuh"
#include "response.cuh"
#include "stem.cuh"
#include "losses.cuh"
#undef T
#undef NAME

#define T bf16
#define NAME(name) name##_bf16
#include "rows.cuh"
#include "depthwise.cuh"
#include "response.cuh"
#include "stem.cuh"
#include "losses.cuh"
#undef T
#undef NAME

#define NAME(name) name
#include "plain.cuh"
