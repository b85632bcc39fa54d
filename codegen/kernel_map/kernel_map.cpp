// Kernel maps and halos; see kernel_map.py.

#include <algorithm>
#include <cstdint>

#ifdef _WIN32
#define EXPORTED extern "C" __declspec(dllexport)
#else
#define EXPORTED extern "C"
#endif

namespace {
constexpr int32_t UNSEEN = -1, HALO = -2;

bool outside(int64_t site, int64_t count) { return uint64_t(site) >= uint64_t(count); }
}  // namespace

// What output sites read: map [sites, ky * kx] of input sites, `count` for padding, and the halo:
// those of them that are not active, ascending, or site 0. Returns the number of these, 0 if a
// site lies outside of its grid.
// Rows [H', ky] and columns [W', kx] are offsets, as geometry.axes gives them, within one of the
// items that follow each other; in_sites [active] and out_sites [sites] may be null: all.
// position [count + 1] tells number_sites what was met.
EXPORTED int64_t read_sites(
    const int64_t* rows, const int64_t* columns, const int64_t* in_sites, const int64_t* out_sites,
    int64_t* map, int64_t* halo, int32_t* position, int64_t count, int64_t active, int64_t sites,
    int64_t ky, int64_t kx, int64_t out_height, int64_t out_width, int64_t items) {
  std::fill(position, position + count, UNSEEN);
  for (int64_t i = 0; i < active; i++) {
    const int64_t site = in_sites ? in_sites[i] : i;
    if (outside(site, count)) return 0;
    position[site] = int32_t(i);
  }
  position[count] = int32_t(active);  // the place of padding, but for the halo's size
  const int64_t inside = count / items, out_inside = out_height * out_width;
  int64_t found = 0, item = 0;
  for (int64_t s = 0; s < sites; s++) {
    const int64_t site = out_sites ? out_sites[s] : s;
    if (outside(site, items * out_inside)) return 0;
    if (outside(site - item * out_inside, out_inside)) item = site / out_inside;
    const int64_t own = site - item * out_inside, first = item * inside;
    const int64_t *y = rows + own / out_width * ky, *x = columns + own % out_width * kx;
    for (int64_t i = 0; i < ky; i++)
      for (int64_t j = 0; j < kx; j++) {
        const int64_t sum = y[i] + x[j], at = sum < 0 ? count : first + sum;
        *map++ = at;
        if (position[at] == UNSEEN) {
          position[at] = HALO;
          halo[found++] = at;
        }
      }
  }
  if (!found) halo[found++] = 0;  // nothing refers to it
  std::sort(halo, halo + found);
  return found;
}

// Sites in a map of `size` numbers become places in [active | halo | one row of zeros]. Returns
// whether all of them, and of the halo, are sites.
EXPORTED int64_t number_sites(
    int64_t* map, const int64_t* halo, int32_t* position, int64_t count, int64_t size,
    int64_t halo_size) {
  const int64_t active = position[count];
  for (int64_t i = 0; i < halo_size; i++) {
    if (outside(halo[i], count)) return 0;
    if (position[halo[i]] == HALO) position[halo[i]] = int32_t(active + i);
  }
  position[count] = int32_t(active + halo_size);
  for (int64_t i = 0; i < size; i++) {
    if (outside(map[i], count + 1)) return 0;
    map[i] = position[map[i]];
  }
  return 1;
}
