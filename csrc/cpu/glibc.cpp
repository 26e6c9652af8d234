// What GCC's headers expect of libraries newer than glibc 2.27 and the libstdc++ of GCC 8. Defined here, so that the
// kernels run on every system from these on, whichever system builds them.
#include <new>
#include <sstream>

#if defined(__x86_64__) && defined(__GLIBCXX__)

// glibc 2.32. 0 stands for a process with several threads: reference counts are then always atomic.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {

#if _GLIBCXX_RELEASE >= 11
__asm__(".hidden _ZSt28__throw_bad_array_new_lengthv");
void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }
#endif

// In libstdc++ 8 these were inline.
template basic_ostringstream<char>::basic_ostringstream();
template basic_stringstream<char>::basic_stringstream();

}  // namespace std

#endif
