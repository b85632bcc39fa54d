// The product of gathered rows with a weight of which each output, or each LINE of them, keeps its
// own inputs, for float32 on CPUs; see fine.py.
//
// Sites stand along the lanes of vectors, so that each output can skip inputs of its own. A block of
// inputs of SITES sites is transposed into the first-level cache. Each output adds up what it keeps
// there: a broadcast weight times VECTORS vectors, whose sums stay in registers. These take
// 1 + 1 / VECTORS loads a multiplication, so where a cycle has two of either, 2:4 is at best 1.8
// times as fast as all inputs. Outputs that share what they keep load it once for two of them.

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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
typedef int32_t Order __attribute__((vector_size(LANES * sizeof(int32_t))));

// In each four lanes of two vectors a and b.
#if defined(__AVX512F__)
#define EACH(a, b, c, d) \
  a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#elif defined(__AVX2__)
#define EACH(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#else
#define EACH(a, b, c, d) a, b, c, d
#endif
#define LOW EACH(0, LANES, 1, LANES + 1)
#define HIGH EACH(2, LANES + 2, 3, LANES + 3)
#define FIRST EACH(0, 1, LANES, LANES + 1)
#define SECOND EACH(2, 3, LANES + 2, LANES + 3)

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
  int64_t share;  // outputs that have a list together: LINE or 1

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
const Quad& four(const float* values) { return *reinterpret_cast<const Quad*>(values); }

struct alignas(64) Scratch {
  float tile[MOST_INPUTS][SITES];
  float sums[OUTPUTS][SITES];
  const float* items[SITES];  // of each site: its item's rows, or without a map its own
  const int64_t* maps[SITES];
};

// Four numbers of each of several rows, one after the other in a vector.
Vec joined(const float* const* rows, int64_t first, int64_t step) {
  const auto quad = [&](int64_t i) { return four(rows[i * step] + first); };
#if defined(__AVX512F__)
  const __m256 low = _mm256_set_m128(quad(1), quad(0)), high = _mm256_set_m128(quad(3), quad(2));
  return Vec(_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
#elif defined(__AVX2__)
  return Vec(_mm256_set_m128(quad(1), quad(0)));
#else
  return quad(0);
#endif
}

// to[i * stride + j] = from[j][i] for i < size, j < LANES: squares of FOUR, side by side in vectors
void transpose(const float* const (&from)[LANES], int64_t size, float* to, int64_t stride) {
  int64_t i = 0;
  for (; i + FOUR <= size; i += FOUR, to += FOUR * stride) {
    Vec row[FOUR];
    UNROLLED for (int j = 0; j < FOUR; j++) row[j] = joined(from + j, i, FOUR);
    const Vec ab_low = SHUFFLED(row[0], row[1], LOW), ab_high = SHUFFLED(row[0], row[1], HIGH);
    const Vec cd_low = SHUFFLED(row[2], row[3], LOW), cd_high = SHUFFLED(row[2], row[3], HIGH);
    at(to) = SHUFFLED(ab_low, cd_low, FIRST);
    at(to + stride) = SHUFFLED(ab_low, cd_low, SECOND);
    at(to + 2 * stride) = SHUFFLED(ab_high, cd_high, FIRST);
    at(to + 3 * stride) = SHUFFLED(ab_high, cd_high, SECOND);
  }
  for (; i < size; i++, to += stride)
    for (int j = 0; j < LANES; j++) to[j] = from[j][i];
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
    for (int64_t lane = 0; lane < vectors * LANES; lane += LANES) {
      const float* from[LANES];
      for (int j = 0; j < LANES; j++) {
        const int64_t row = o.map ? scratch.maps[lane + j][tap] : 0;
        from[j] = scratch.items[lane + j] + row * o.channels + first;
      }
      transpose(from, size, scratch.tile[input - inputs.start] + lane, SITES);
    }
    input += size;
  }
}

// Adds to sums[output : output + O] what they keep of the tile: `kept` weights for each, and places
// for each or, SHARED, for all. The first block starts from the bias, which is null in others.
template <int O, int R, bool SHARED>
void add(
    const Scratch& scratch, const float* weight, const uint8_t* list, int64_t kept,
    const float* start, float (*sums)[SITES]) {
  Vec total[O][R];
  UNROLLED for (int o = 0; o < O; o++)
    UNROLLED for (int r = 0; r < R; r++)
      total[o][r] = start ? Vec{} + start[o] : at(sums[o] + r * LANES);
  for (int64_t k = 0; k < kept; k++)
    UNROLLED for (int o = 0; o < O; o++) {
      const float* input = scratch.tile[list[SHARED ? k : o * kept + k]];
      const float w = weight[o * kept + k];
      UNROLLED for (int r = 0; r < R; r++) total[o][r] += w * at(input + r * LANES);
    }
  UNROLLED for (int o = 0; o < O; o++)
    UNROLLED for (int r = 0; r < R; r++) at(sums[o] + r * LANES) = total[o][r];
}

// Few vectors leave registers for several outputs, whose sums do not wait for each other.
template <int R, bool SHARED>
void add_all(
    Scratch& scratch, const float* weight, const uint8_t* list, int64_t kept, const float* start,
    int64_t outputs) {
  constexpr int O = REGISTERS / R >= FOUR ? FOUR : REGISTERS / R >= 2 ? 2 : 1;
  for (int64_t o = 0; o < outputs; o += O)
    add<O, R, SHARED>(
        scratch, weight + o * kept, list + (SHARED ? o / LINE : o) * kept, kept,
        start ? start + o : nullptr, scratch.sums + o);
}

using Adds = void (*)(Scratch&, const float*, const uint8_t*, int64_t, const float*, int64_t);
template <bool SHARED, int... I>
constexpr std::array<Adds, sizeof...(I)> adds(std::integer_sequence<int, I...>) {
  return {add_all<I + 1, SHARED>...};
}
using Counts = std::make_integer_sequence<int, VECTORS>;
constexpr auto OWN = adds<false>(Counts{}), SHARED = adds<true>(Counts{});

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
    (o.share == 1 ? OWN : SHARED)[vectors - 1](
        scratch, o.weight + before, o.lists() + before / o.share, kept, start, count);
  }
  for (int64_t output = 0; output < count; output += LANES) {
    const float* from[LANES];
    for (int j = 0; j < LANES; j++) from[j] = scratch.sums[output + j];
    transpose(from, here, o.out + sites.start * o.width + outputs.start + output, o.width);
  }
}

bool all_below(int64_t count, const int64_t* numbers, int64_t size) {
  uint64_t most = 0;  // what is negative is large
  for (int64_t i = 0; i < size; i++) most = std::max(most, uint64_t(numbers[i]));
  return !size || most < uint64_t(count);
}

}  // namespace

// Are there as many multiplications of whole vectors a cycle as loads?
EXPORTED int64_t loads_bound() {
#ifdef __AVX512F__
  return __builtin_cpu_is("intel");
#else
  return 0;
#endif
}

// Inputs of a block, unless a group has more.
EXPORTED int64_t block_inputs() { return INPUTS; }

// Returns whether the map points at rows; nothing is computed if not. `block` is a multiple of the
// group, at most MOST_INPUTS; LINE divides the width. `share` is LINE or 1.
EXPORTED int64_t gather_matmul_fine(
    const float* rows, const int64_t* map, const float* weight, const float* bias, float* out,
    int64_t batch, int64_t count, int64_t channels, int64_t kept, int64_t sites, int64_t taps,
    int64_t width, int64_t threads, int64_t block, int64_t share) {
  const Operands o{rows, map, weight, bias, out, batch, count, channels, kept, sites, taps, width,
                   block, share};
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
