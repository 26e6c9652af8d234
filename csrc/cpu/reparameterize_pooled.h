// What the forward and the backward pass of reparameterize with pooling share.
#pragma once

#include "reparameterize.h"

namespace udml {

// float32 sums of squares are accurate between these limits. Outside, squares may have overflowed or underflowed.
inline constexpr double SMALLEST_SQUARES = 1e-30, LARGEST_SQUARES = 1e30;

// The work items of maps with the channels last: for each sample, blocks of channels and, in them, parts of the
// locations. The division depends on the shape alone.
struct ChannelBlocks {
  static constexpr int64_t WIDTH = 256, LOCATIONS = 1024;
  int64_t channels, locations, blocks, parts;

  explicit ChannelBlocks(const Shape& shape)
      : channels(shape.channels),
        locations(shape.locations),
        blocks((channels + WIDTH - 1) / WIDTH),
        parts((locations + LOCATIONS - 1) / LOCATIONS) {}

  int64_t count() const { return blocks * parts; }
  int64_t cost() const { return std::min(channels, WIDTH) * std::min(locations, LOCATIONS); }
  int64_t channel(int64_t item) const { return item / parts * WIDTH; }
  int64_t width(int64_t item) const { return std::min(WIDTH, channels - channel(item)); }
  int64_t begin(int64_t item) const { return item % parts * LOCATIONS; }
  int64_t end(int64_t item) const { return std::min(locations, begin(item) + LOCATIONS); }
};

template <class C>
double square_in_double(C logvar, const Clip<C>& clip) {
  const double std = std_in_double(logvar, clip);
  return std * std;
}

}  // namespace udml
