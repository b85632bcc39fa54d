// The product of gathered rows with a weight of which each output keeps its own inputs, for float32
// on CPUs; see fine.py.
//
// Sites stand along the lanes of vectors, so that each output can skip inputs of its own. A block of
// inputs of SITES sites is transposed into the first-level cache. Each output adds up what it keeps
// there: a broadcast weight times VECTORS vectors, whose sums stay in registers. These take
// 1 + 1 / VECTORS loads a multiplication, so where a cycle has two of either, 2:4 is at best 1.8
// times as fast as all inputs.

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#ifdef _WIN32
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C"
#endif

#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

#define UNROLLED _Pragma("GCC unroll 8")

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 24;  // of 32, for results
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 12;  // of 16
#else
constexpr int LANES = 4, REGISTERS = 12;
#endif
constexpr int VECTORS = 8, SITES = VECTORS * LANES;
constexpr int64_t INPUTS = 6144 / SITES;  // of a block: 24 KiB of the first-level cache
constexpr int64_t MOST_INPUTS = 256;  // that a byte of a list can name: none reads beyond the tile
constexpr int64_t OUTPUTS = 512;  // that share a tile: their results fit the second-level cache
constexpr int FOUR = 4, LINE = 16;  // of the cache, in numbers

typedef float Vec
    __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float Quad __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));
typedef int32_t Order __attribute__((vector_size(16)));

struct Operands {
  const float* rows;  // [batch, count, channels]
  const int64_t* map;  // [sites, taps], or null: each site reads its own row
  // For each block of inputs of all taps, [width, what is kept of the block]; behind them, in the
  // same order, the place of each in its block: a byte.
  const float* weight;
  const float* bias;  // [width], or null
  float* out;  // [batch, sites, width]
  int64_t batch, count, channels, kept, sites, taps, width;  // kept: channels that a weight has
  int64_t block;  // inputs

  const uint8_t* lists() const {
    return reinterpret_cast<const uint8_t*>(weight + taps * kept * width);
  }
};

struct Range {
  int64_t start, stop;
};

Range part(Range whole, int64_t index, int64_t parts) {
  const int64_t size = whole.stop - whole.start;
  return {whole.start + size * index / parts, whole.start + size * (index + 1) / parts};
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Vec& at(float* values) { return *reinterpret_cast<Vec*>(values); }
const Vec& at(const float* values) { return *reinterpret_cast<const Vec*>(values); }
Quad& four(float* values) { return *reinterpret_cast<Quad*>(values); }
const Quad& four(const float* values) { return *reinterpret_cast<const Quad*>(values); }

struct alignas(64) Scratch {
  float tile[MOST_INPUTS][SITES];
  float sums[OUTPUTS][SITES];
  const float* items[SITES];  // of each site: its item's rows, or without a map its own
  const int64_t* maps[SITES];
};

// to[i * stride + j] = from[j][i] for i < size, j < FOUR
void transpose(const float* const (&from)[FOUR], int64_t size, float* to, int64_t stride) {
  int64_t i = 0;
  for (; i + FOUR <= size; i += FOUR, to += FOUR * stride) {
    const Quad a = four(from[0] + i), b = four(from[1] + i);
    const Quad c = four(from[2] + i), d = four(from[3] + i);
    const Quad ab_low = SHUFFLED(a, b, 0, 4, 1, 5);
    const Quad ab_high = SHUFFLED(a, b, 2, 6, 3, 7);
    const Quad cd_low = SHUFFLED(c, d, 0, 4, 1, 5);
    const Quad cd_high = SHUFFLED(c, d, 2, 6, 3, 7);
    four(to) = SHUFFLED(ab_low, cd_low, 0, 1, 4, 5);
    four(to + stride) = SHUFFLED(ab_low, cd_low, 2, 3, 6, 7);
    four(to + 2 * stride) = SHUFFLED(ab_high, cd_high, 0, 1, 4, 5);
    four(to + 3 * stride) = SHUFFLED(ab_high, cd_high, 2, 3, 6, 7);
  }
  for (; i < size; i++, to += stride)
    for (int j = 0; j < FOUR; j++) to[j] = from[j][i];
}

// Where some sites read. Lanes without a site repeat the last one.
void find(const Operands& o, Range sites, int64_t vectors, Scratch& scratch) {
  for (int64_t lane = 0; lane < vectors * LANES; lane++) {
    const int64_t site = std::min(sites.start + lane, sites.stop - 1);
    const int64_t item = site / o.sites, own = site % o.sites;
    scratch.items[lane] = o.rows + (item * o.count + (o.map ? 0 : own)) * o.channels;
    scratch.maps[lane] = o.map ? o.map + own * o.taps : nullptr;
  }
}

// The tile of a block of inputs, for so many vectors of sites.
void fill(const Operands& o, Range inputs, int64_t vectors, Scratch& scratch) {
  for (int64_t input = inputs.start; input < inputs.stop;) {
    const int64_t tap = input / o.channels, first = input % o.channels;
    const int64_t size = std::min(inputs.stop - input, o.channels - first);
    for (int64_t lane = 0; lane < vectors * LANES; lane += FOUR) {
      const float* from[FOUR];
      UNROLLED for (int j = 0; j < FOUR; j++) {
        const int64_t row = o.map ? scratch.maps[lane + j][tap] : 0;
        from[j] = scratch.items[lane + j] + row * o.channels + first;
      }
      transpose(from, size, scratch.tile[input - inputs.start] + lane, SITES);
    }
    input += size;
  }
}

// Adds to sums[output : output + O] what they keep of the tile: `kept` weights and places for each.
// The first block starts from the bias, which is null in others.
template <int O, int R>
void add(
    const Scratch& scratch, const float* weight, const uint8_t* list, int64_t kept,
    const float* start, float (*sums)[SITES]) {
  Vec total[O][R];
  UNROLLED for (int o = 0; o < O; o++)
    UNROLLED for (int r = 0; r < R; r++)
      total[o][r] = start ? Vec{} + start[o] : at(sums[o] + r * LANES);
  for (int64_t k = 0; k < kept; k++)
    UNROLLED for (int o = 0; o < O; o++) {
      const float* input = scratch.tile[list[o * kept + k]];
      const float w = weight[o * kept + k];
      UNROLLED for (int r = 0; r < R; r++) total[o][r] += w * at(input + r * LANES);
    }
  UNROLLED for (int o = 0; o < O; o++)
    UNROLLED for (int r = 0; r < R; r++) at(sums[o] + r * LANES) = total[o][r];
}

// Few vectors leave registers for several outputs, whose sums do not wait for each other.
template <int R>
void add_all(
    Scratch& scratch, const float* weight, const uint8_t* list, int64_t kept, const float* start,
    int64_t outputs) {
  constexpr int O = REGISTERS / R >= FOUR ? FOUR : REGISTERS / R >= 2 ? 2 : 1;
  for (int64_t o = 0; o < outputs; o += O)
    add<O, R>(
        scratch, weight + o * kept, list + o * kept, kept, start ? start + o : nullptr,
        scratch.sums + o);
}

using Adds = void (*)(Scratch&, const float*, const uint8_t*, int64_t, const float*, int64_t);
template <int... I>
constexpr std::array<Adds, sizeof...(I)> adds(std::integer_sequence<int, I...>) {
  return {add_all<I + 1>...};
}
constexpr auto ADDS = adds(std::make_integer_sequence<int, VECTORS>{});

// Some outputs, at most OUTPUTS, at some sites, at most SITES.
void results(const Operands& o, Range sites, Range outputs) {
  static const float none[OUTPUTS] = {};
  thread_local Scratch scratch;
  const int64_t count = outputs.stop - outputs.start, here = sites.stop - sites.start;
  const int64_t vectors = ceil_div(here, LANES), depth = o.taps * o.channels;
  const float* start = o.bias ? o.bias + outputs.start : none;
  find(o, sites, vectors, scratch);
  for (int64_t first = 0; first < depth; first += o.block, start = nullptr) {
    const Range inputs{first, std::min(depth, first + o.block)};
    const int64_t kept = (inputs.stop - first) * o.kept / o.channels;
    const int64_t before = first * o.kept / o.channels * o.width + outputs.start * kept;
    fill(o, inputs, vectors, scratch);
    ADDS[vectors - 1](scratch, o.weight + before, o.lists() + before, kept, start, count);
  }
  for (int64_t output = 0; output < count; output += FOUR) {
    float(*sums)[SITES] = scratch.sums + output;
    float* to = o.out + sites.start * o.width + outputs.start + output;
    transpose({sums[0], sums[1], sums[2], sums[3]}, here, to, o.width);
  }
}

bool all_below(int64_t count, const int64_t* numbers, int64_t size) {
  uint64_t most = 0;  // what is negative is large
  for (int64_t i = 0; i < size; i++) most = std::max(most, uint64_t(numbers[i]));
  return !size || most < uint64_t(count);
}

}  // namespace

// Inputs of a block, unless a group has more.
EXPORTED int64_t block_inputs() { return INPUTS; }

// Returns whether the map points at rows; nothing is computed if not. `block` is a multiple of the
// group, at most MOST_INPUTS; LINE divides the width.
EXPORTED int64_t gather_matmul_fine(
    const float* rows, const int64_t* map, const float* weight, const float* bias, float* out,
    int64_t batch, int64_t count, int64_t channels, int64_t kept, int64_t sites, int64_t taps,
    int64_t width, int64_t threads, int64_t block) {
  const Operands o{rows, map, weight, bias, out, batch, count, channels, kept, sites, taps, width,
                   block};
  if (map && !all_below(count, map, sites * taps)) return 0;
  const int64_t total = batch * sites, vectors = ceil_div(total, LANES);
  const int64_t tiles = ceil_div(vectors, VECTORS), lines = width / LINE;
  int64_t parts = ceil_div(lines, OUTPUTS / LINE);
  if (tiles && tiles * parts < threads) parts = std::min(lines, ceil_div(threads, tiles));
// Dynamic, as cores are shared: each thread takes what its core has the time for.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < tiles * parts; task++) {
    const Range own = part({0, vectors}, task / parts, tiles);
    const Range outputs = part({0, lines}, task % parts, parts);
    results(
        o, {own.start * LANES, std::min(total, own.stop * LANES)},
        {outputs.start * LINE, outputs.stop * LINE});
  }
  return 1;
}
