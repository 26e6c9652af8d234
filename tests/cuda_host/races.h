// Data races, and reads of shared memory that nobody wrote. Sees what kernels access where they are compiled with
// -fsanitize=thread (tsan.cpp); otherwise nothing calls it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace udml_host {

enum class Access : uint8_t { READ, WRITE, ATOMIC };

// A kernel's thread touches memory.
void record(const void* at, size_t bytes, Access access);

void begin_watching();
// What was found since; empty if nothing was.
std::string end_watching();

}  // namespace udml_host
