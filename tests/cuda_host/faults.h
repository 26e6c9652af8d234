// Kernels that try the harness: correct ones, and each with one fault.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace udml_host {

struct Case {
  const char* name;
  void (*run)();
};

// Faulty kernels, and correct ones that look like them.
const std::vector<Case>& cases();

// The sum of each block's share of the values.
std::vector<float> block_sums(const std::vector<float>& values, unsigned blocks, unsigned threads);
// 1 for every thread of the grid at its linear index.
std::vector<int> indices(std::vector<unsigned> grid, std::vector<unsigned> block);
// What each of 32 lanes gets that hands over its number: kind 0 to 3 is idx, up, down, xor.
std::vector<double> shuffles(int kind, int argument, int width, bool as_double);
// any, all, ballot of the lanes in the mask for one warp, and the same over the block.
std::vector<unsigned> votes(unsigned predicates, unsigned mask);
// Counters at -1 a thread, its largest index, 2^32, 0.5 and 2 a thread, 7.
std::vector<double> atomics(unsigned blocks, unsigned threads);
// What a block's first thread finds in shared memory, static then dynamic, where each leaves something else.
std::vector<unsigned> found_in_shared(unsigned blocks);
std::vector<unsigned> narrowed(const std::vector<float>& values, bool half);
std::vector<float> widened(const std::vector<unsigned>& bits, bool half);
std::vector<int> seen_first(unsigned blocks, unsigned threads);
// Shuffles of every thread, for timing.
float switch_often(unsigned blocks, unsigned threads, int times);

}  // namespace udml_host
