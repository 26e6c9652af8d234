// Binds the kernels of the CPU backend to the op schemas that udml_kernels/ops/ defines.
#include "../registration.h"

#define UDML_BIND(name) m.impl(#name ".cpu", TORCH_BOX(&udml::name));

STABLE_TORCH_LIBRARY_IMPL(udml_kernels, CPU, m) {
  UDML_FOR_EACH_OP(UDML_BIND)
}
