// The product of gathered rows with a weight, for float32 on CPUs; see gather_matmul.py.
//
// A block of ROWS x VECTORS registers of results stays in registers while the taps and channels
// of one depth are summed up; rows are read where they lie, through the kernel map, so nothing is
// gathered first. The loops around it keep one depth of a panel of the weight in the second-level
// cache for all rows of a chunk (K. Goto, R. van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", ACM TOMS 34(3), 2008; rows need no packing, as each is contiguous).
//
// With LISTED defined, the weight has only some inputs of each tap, which a list for every LINE
// columns names. Else it has all of them.

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

#define UNROLLED _Pragma("GCC unroll 8")

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4;  // of 32 registers, 24 hold results
constexpr int64_t DEPTH = 1024;  // taps x channels summed at a time
constexpr int64_t CHUNK = 240;   // rows that share a panel in the cache
constexpr int64_t AHEAD = 8;     // steps of depth that a panel is prefetched ahead
constexpr bool ALWAYS = true;    // by every block of rows
#else
#ifdef __AVX2__
constexpr int LANES = 8, VECTORS = 2;  // of 16 registers, 12 do
#else
constexpr int LANES = 4, VECTORS = 4;
#endif
constexpr int64_t DEPTH = 1536, CHUNK = 480;  // panels are a quarter as wide
constexpr int64_t AHEAD = 16;
constexpr bool ALWAYS = false;  // a step is so short that asking in each is a tenth of it
#endif
#ifdef LISTED
constexpr bool HAS_LISTS = true;
#else
constexpr bool HAS_LISTS = false;
#endif
constexpr int ROWS = 6, LINE = 16;  // of the cache, in numbers
constexpr int64_t PANEL = VECTORS * LANES;
constexpr int64_t FEW = 4;  // blocks of rows
constexpr int64_t TASKS = 8;  // a thread: with fewer, their number is a multiple of threads

typedef float Vec
    __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

struct Operands {
  const float* rows;  // [batch, count, channels]
  const int64_t* map;  // [sites, taps], or null: each site reads its own row
  // Panels [taps * kept, PANEL], the last may be narrower; behind them lists, if it HAS_LISTS: int32
  // in the same order, one for LINE columns, of inputs of all taps.
  const float* weight;
  const float* bias;  // [width], or null
  float* out;  // [batch, sites, width]
  int64_t batch, count, channels, kept, sites, taps, width;  // kept: channels that a weight has

  const int32_t* lists() const {
    return reinterpret_cast<const int32_t*>(weight + taps * kept * width);
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

// Weights to be brought into the cache: a line of them from `next` on every so many steps of depth.
struct Fetch {
  const float* next;
  int64_t every;
};

// Adds to out[site : site + R, column : column + V * LANES] what taps and kept channels give. STEADY
// prefetches the weights of AHEAD steps later in each step, and not `fetch`.
template <int R, int V, bool STEADY>
void block(
    const Operands& o, int64_t site, int64_t column, Range taps, Range channels, Fetch fetch) {
  const float* item[R];
  const int64_t* map[R];
  float* out[R];
  UNROLLED for (int r = 0; r < R; r++) {
    const int64_t batch = (site + r) / o.sites, own = (site + r) % o.sites;
    item[r] = o.rows + batch * o.count * o.channels + (o.map ? 0 : own * o.channels);
    map[r] = o.map ? o.map + own * o.taps : nullptr;
    out[r] = o.out + (site + r) * o.width + column;
  }
  const bool first = taps.start == 0 && channels.start == 0;
  Vec sums[R][V];
  UNROLLED for (int r = 0; r < R; r++)
    UNROLLED for (int v = 0; v < V; v++) {
      if (!first) sums[r][v] = at(out[r] + v * LANES);
      else sums[r][v] = o.bias ? at(o.bias + column + v * LANES) : Vec{};
    }
  constexpr int64_t step = V * LANES, lists = step / LINE;
  constexpr int each = HAS_LISTS ? std::min(LINE / LANES, V) : V;  // vectors that share inputs
  const float* panel = o.weight + column * o.taps * o.kept;
  for (int64_t tap = taps.start; tap < taps.stop; tap++) {
    const float* row[R];
    UNROLLED for (int r = 0; r < R; r++) row[r] = item[r] + (o.map ? map[r][tap] * o.channels : 0);
    const float* w = panel + (tap * o.kept + channels.start) * step;
    const int32_t* list =
        HAS_LISTS ? o.lists() + (column / LINE * o.taps + tap * lists) * o.kept : nullptr;
    const int32_t tap_start = tap * o.channels;
    for (int64_t c = channels.start; c < channels.stop; fetch.next += LINE) {
      const int64_t stop = STEADY ? channels.stop : std::min(channels.stop, c + fetch.every);
      if (!STEADY) __builtin_prefetch(fetch.next, 0, 2);
      for (; c < stop; c++, w += step) {
        Vec terms[V];
        UNROLLED for (int v = 0; v < V; v++) {
          terms[v] = at(w + v * LANES);
          if (STEADY && v * LANES % LINE == 0) __builtin_prefetch(w + AHEAD * step + v * LANES);
        }
        UNROLLED for (int first = 0; first < V; first += each) {
          const int64_t input = HAS_LISTS ? list[c * lists + first / each] - tap_start : c;
          UNROLLED for (int r = 0; r < R; r++) {
            const float x = row[r][input];
            UNROLLED for (int v = 0; v < each; v++) sums[r][first + v] += x * terms[first + v];
          }
        }
      }
    }
  }
  UNROLLED for (int r = 0; r < R; r++)
    UNROLLED for (int v = 0; v < V; v++) at(out[r] + v * LANES) = sums[r][v];
}

using Block = void (*)(const Operands&, int64_t, int64_t, Range, Range, Fetch);

template <bool STEADY, int... I>
constexpr std::array<Block, sizeof...(I)> blocks(std::integer_sequence<int, I...>) {
  return {block<I / VECTORS + 1, I % VECTORS + 1, STEADY>...};
}
using Kinds = std::make_integer_sequence<int, ROWS * VECTORS>;
constexpr auto CACHED = blocks<ALWAYS>(Kinds{}), FETCHING = blocks<true>(Kinds{});

// One panel of columns for a chunk of rows. Each block of these fetches a part of the weights that
// follow in memory, which then wait in the cache (24 to 130 rows are 5 to 20 % faster than if the
// first block fetches those of its own depth for all; FEW blocks take too short a time for it).
void panel(const Operands& o, Range sites, int64_t column) {
  const int64_t vectors = std::min(PANEL, o.width - column) / LANES;
  const int64_t taps_step = std::max<int64_t>(1, DEPTH / o.kept);
  const int64_t parts = ceil_div(o.kept, DEPTH);
  const int64_t count = ceil_div(sites.stop - sites.start, ROWS);
  for (int64_t tap = 0; tap < o.taps; tap += taps_step)
    for (int64_t p = 0; p < parts; p++) {
      const Range taps{tap, std::min(o.taps, tap + taps_step)};
      const Range channels = part({0, o.kept}, p, parts);
      const Range lines{0, (taps.stop - taps.start) * (channels.stop - channels.start)};
      const float* next = o.weight + column * o.taps * o.kept +
          (taps.start * o.kept + channels.start + lines.stop) * LINE;
      for (int64_t b = 0; b < count; b++) {
        const Range rows = part(sites, b, count);
        const int64_t kind = (rows.stop - rows.start - 1) * VECTORS + vectors - 1;
        const Fetch fetch{next + part(lines, b, count).start * LINE, count};
        (b || count >= FEW ? CACHED : FETCHING)[kind](
            o, rows.start, column, taps, channels, fetch);
      }
    }
}

bool all_below(int64_t count, const int64_t* numbers, int64_t size) {
  uint64_t most = 0;  // what is negative is large
  for (int64_t i = 0; i < size; i++) most = std::max(most, uint64_t(numbers[i]));
  return !size || most < uint64_t(count);
}

// Does every list name channels of the tap that it is for?
bool all_listed(const Operands& o) {
  const int32_t* list = o.lists();
  for (int64_t column = 0; column < o.width; column += PANEL) {
    const int64_t size = std::min(PANEL, o.width - column) / LINE * o.kept;
    for (int64_t tap = 0; tap < o.taps; tap++, list += size) {
      uint32_t most = 0;  // what is below the first is large
      for (int64_t i = 0; i < size; i++)
        most = std::max(most, uint32_t(list[i]) - uint32_t(tap * o.channels));
      if (most >= o.channels) return false;
    }
  }
  return true;
}

}  // namespace

// Columns of a panel of the weight.
EXPORTED int64_t panel_width() { return PANEL; }

// Returns whether the map points at rows, and lists at channels; nothing is computed if not.
EXPORTED int64_t gather_matmul(
    const float* rows, const int64_t* map, const float* weight, const float* bias, float* out,
    int64_t batch, int64_t count, int64_t channels, int64_t kept, int64_t sites, int64_t taps,
    int64_t width, int64_t threads) {
  const Operands o{rows, map, weight, bias, out, batch, count, channels, kept, sites, taps, width};
  if (map && !all_below(count, map, sites * taps)) return 0;
  if (HAS_LISTS && !all_listed(o)) return 0;
  const int64_t total = batch * sites, panels = ceil_div(width, PANEL);
  int64_t chunks = ceil_div(total, CHUNK);
  if (panels * chunks < TASKS * threads && panels * chunks % threads)  // as much for each thread
    chunks = ceil_div(chunks, threads) * threads;
// Dynamic, as cores are shared: each thread takes what its core has the time for.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < panels * chunks; task++)
    panel(o, part({0, total}, task / panels, chunks), task % panels * PANEL);
  return 1;
}
