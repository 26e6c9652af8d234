// Included before every file of the CPU kernels. exp and log got new versions in glibc 2.29 that no longer set errno;
// the old ones return the same values, and with them one library serves every glibc from 2.27 on.
#pragma once
#if defined(__x86_64__) && defined(__gnu_linux__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
#endif
