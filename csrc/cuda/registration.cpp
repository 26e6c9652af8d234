// The CUDA column. The host build of the tests binds the same kernels for the CPU.
#include <torch/csrc/stable/library.h>

#include "../ops.h"

#if defined(UDML_CUDA_HOST)
#define UDML_KEY CPU
#else
#define UDML_KEY CUDA
#endif
#define UDML_BIND(name) m.impl(#name ".cuda", TORCH_BOX(&udml::name))

STABLE_TORCH_LIBRARY_IMPL(udml_kernels, UDML_KEY, m) {
  UDML_BIND(normal);
  UDML_BIND(uniform);
  UDML_BIND(inject_noise);
  UDML_BIND(inject_noise_backward);
  UDML_BIND(reparameterize);
  UDML_BIND(reparameterize_backward);
  UDML_BIND(noise_regression);
  UDML_BIND(noise_regression_backward);
  UDML_BIND(fusion_weights);
  UDML_BIND(fusion_weights_backward);
  UDML_BIND(weighted_fusion);
  UDML_BIND(weighted_fusion_backward);
  UDML_BIND(modality_dropout);
  UDML_BIND(modality_dependency);
  UDML_BIND(modality_dependency_backward);
  UDML_BIND(evidential_fusion);
  UDML_BIND(evidential_fusion_backward);
  UDML_BIND(evidential_loss);
  UDML_BIND(evidential_loss_backward);
}
