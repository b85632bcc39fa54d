// Checksums of memory; see checksum.py.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _WIN32
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C"
#endif

namespace {

// A word of each block: of every page, the table of pages alone takes 2 ms for 455 MB.
constexpr int64_t BLOCK = 16384, CHUNK = 64 * BLOCK;
constexpr int64_t AHEAD = 16;       // blocks that a word is prefetched ahead
constexpr int64_t ALONE = 1 << 20;  // bytes that one thread reads sooner than several start
constexpr int LANES = 8;            // hide the latency of a multiplication
constexpr uint64_t PRIME = 0x9E3779B185EBCA87;

uint64_t word_at(const uint8_t* bytes, int64_t size = 8) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, size);
  return word;
}

// Of D. Stafford ("mix 13"): every bit of the input moves half of the output's.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// One to one in each argument, so no single word can change unseen; the rotation carries the
// highest bits, signs, to where the next product spreads them.
uint64_t step(uint64_t sum, uint64_t word) {
  sum ^= word;
  return (sum << 29 | sum >> 35) * PRIME;
}

uint64_t every_byte(const uint8_t* bytes, int64_t size, uint64_t seed) {
  uint64_t lanes[LANES];
  for (int l = 0; l < LANES; l++) lanes[l] = seed + l;
  int64_t i = 0;
  for (; i + 8 * LANES <= size; i += 8 * LANES)
    for (int l = 0; l < LANES; l++) lanes[l] = step(lanes[l], word_at(bytes + i + 8 * l));
  for (; i < size; i += 8)
    lanes[0] = step(lanes[0], word_at(bytes + i, std::min<int64_t>(8, size - i)));
  uint64_t sum = seed;
  for (int l = 0; l < LANES; l++) sum = mixed(step(sum, lanes[l]));
  return sum;
}

// A word of each block, not at the same place in all: rows of a matrix may be as long as blocks.
uint64_t some_words(const uint8_t* bytes, int64_t size, uint64_t seed) {
  const int64_t blocks = (size + BLOCK - 1) / BLOCK;
  const auto place = [&](int64_t block) {
    const int64_t start = block * BLOCK, words = std::min(BLOCK, size - start) / 8;
    return bytes + start + (words ? mixed(seed + block) % words * 8 : -8);
  };
  uint64_t sum = mixed(seed ^ word_at(bytes + size - 8));
  for (int64_t block = 0; block < blocks; block++) {
    if (block + AHEAD < blocks) __builtin_prefetch(place(block + AHEAD));
    sum += mixed(word_at(place(block)) + PRIME * (seed + block));
  }
  return sum;
}

}  // namespace

// Of `count` extents of memory, each `sizes[i]` bytes from `starts[i]`: of all bytes, or else of a
// few words of each block. The sum of what chunks give, in whatever order threads take these.
EXPORTED uint64_t checksum(
    const uint8_t* const* starts, const int64_t* sizes, int64_t count, int64_t whole,
    int64_t threads) {
  std::vector<int64_t> first(count + 1, 0);  // chunk of each extent
  int64_t bytes = 0;
  for (int64_t i = 0; i < count; i++) {
    first[i + 1] = first[i] + (sizes[i] + CHUNK - 1) / CHUNK;
    bytes += sizes[i];
  }
  uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : sum) if (bytes > ALONE)
  for (int64_t chunk = 0; chunk < first[count]; chunk++) {
    const int64_t i = std::upper_bound(first.begin(), first.end(), chunk) - first.begin() - 1;
    const int64_t offset = (chunk - first[i]) * CHUNK, size = std::min(CHUNK, sizes[i] - offset);
    const uint64_t seed = mixed(PRIME * (chunk + 1));
    const bool all = whole || size <= BLOCK;
    sum += (all ? every_byte : some_words)(starts[i] + offset, size, seed);
  }
  return sum;
}
