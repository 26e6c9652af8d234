// Binds this column's kernels to the schemas that udml_kernels/ops/ defines.
#include <torch/csrc/stable/library.h>

#include "ops.h"

#define UDML_BIND(name) m.impl(#name ".cpu", TORCH_BOX(&udml::name))

STABLE_TORCH_LIBRARY_IMPL(udml_kernels, CPU, m) {
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
