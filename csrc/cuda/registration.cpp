// Binds the kernels of the CUDA backend. The host build of the tests binds them for the CPU.
#include "../registration.h"

#if defined(UDML_CUDA_HOST)
#define UDML_KEY CPU
#else
#define UDML_KEY CUDA
#endif
#define UDML_BIND(name) m.impl(#name ".cuda", TORCH_BOX(&udml::name));

STABLE_TORCH_LIBRARY_IMPL(udml_kernels, UDML_KEY, m) {
  UDML_FOR_EACH_OP(UDML_BIND)
}
