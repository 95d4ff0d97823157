// CUDA's model of execution on the host, for tests: the kernels' sources compiled as C++.
//
// The threads of a block are fibers, which run one after the other until they wait for each other: at __syncthreads all
// of the block, at a shuffle all of the warp. They start in order, or in reverse if `reversed`; a kernel whose result
// depends on that lacks a barrier. Shared memory holds not-a-number when a block starts. A block in which some threads
// wait for others that have ended, or wait elsewhere, ends the launch with an error.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include <ucontext.h>

struct Index {
    int x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

#define __device__
#define __shared__ static __attribute__((section("shared")))
extern "C" char __start_shared, __stop_shared;

static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }

enum State { RUNS, AT_BARRIER, AT_SHUFFLE, ENDED };

struct Fiber {
    ucontext_t context;
    State state;
    float value;
};

static std::vector<Fiber> fibers;
static std::vector<char> stacks;
static ucontext_t scheduler;
static int current;
static std::function<void()> body;
static const size_t STACK = 1 << 16;

static void wait_at(State state) {
    int own = current;
    fibers[own].state = state;
    swapcontext(&fibers[own].context, &scheduler);
}

static void __syncthreads() { wait_at(AT_BARRIER); }

static float __shfl_xor_sync(unsigned, float x, int lanes) {
    int own = current;
    fibers[own].value = x;
    wait_at(AT_SHUFFLE);
    float other = fibers[own ^ lanes].value;
    wait_at(AT_SHUFFLE);
    return other;
}

static void start() {
    body();
    wait_at(ENDED);
}

// Whether all `n` fibers from `first` on wait at `state`; then they run on.
static bool release(int first, int n, State state) {
    for (int i = first; i < first + n; i++)
        if (fibers[i].state != state) return false;
    for (int i = first; i < first + n; i++) fibers[i].state = RUNS;
    return true;
}

// Runs one block; false if its threads wait for each other for ever.
static bool run_block(bool reversed) {
    int n = blockDim.x * blockDim.y;
    memset(&__start_shared, 0xff, &__stop_shared - &__start_shared);
    for (int i = 0; i < n; i++) {
        Fiber& fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = &stacks[i * STACK];
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
        fiber.state = RUNS;
    }
    for (;;) {
        for (int i = 0; i < n; i++) {
            current = reversed ? n - 1 - i : i;
            if (fibers[current].state != RUNS) continue;
            threadIdx = {current % blockDim.x, current / blockDim.x, 0};
            swapcontext(&scheduler, &fibers[current].context);
        }
        bool ended = true, moved = release(0, n, AT_BARRIER);
        for (int warp = 0; warp < n; warp += 32) moved |= release(warp, 32, AT_SHUFFLE);
        for (int i = 0; i < n; i++) ended &= fibers[i].state == ENDED;
        if (ended || !moved) return ended;
    }
}

using Call = std::function<void(void**)>;
static std::map<std::string, Call>& kernels() {
    static std::map<std::string, Call> all;
    return all;
}

template <class... A, size_t... I> Call unpack(void (*kernel)(A...), std::index_sequence<I...>) {
    return [kernel](void** p) { kernel(*(A*)p[I]...); };
}

struct Register {
    template <class... A> Register(const char* name, void (*kernel)(A...)) {
        kernels()[name] = unpack(kernel, std::index_sequence_for<A...>());
    }
};

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define KERNEL(name, ...)                                                        \
    static void NAME(name)(__VA_ARGS__);                                         \
    static Register REGISTER(NAME(name))(TEXT(NAME(name)), NAME(name));          \
    static void NAME(name)(__VA_ARGS__)
#define REGISTER(name) REGISTER_OF(name)
#define REGISTER_OF(name) register_##name

// 0: done; 1: no such kernel; 2: the threads of a block wait for each other for ever.
extern "C" int emulate(const char* name, int grid_x, int grid_y, int block_x, int block_y, int reversed, void** p) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    gridDim = {grid_x, grid_y, 1}, blockDim = {block_x, block_y, 1};
    fibers.resize(block_x * block_y), stacks.resize(block_x * block_y * STACK);
    body = [&] { found->second(p); };
    for (int y = 0; y < grid_y; y++)
        for (int x = 0; x < grid_x; x++) {
            blockIdx = {x, y, 0};
            if (!run_block(reversed)) return 2;
        }
    return 0;
}

#include "all.cu"
