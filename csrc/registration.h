// The ops that every compiled backend binds. A backend's registration.cpp defines `bind`.
#pragma once

#include <torch/csrc/stable/library.h>

#include "ops.h"

#define UDML_FOR_EACH_OP(bind) \
  bind(normal) \
  bind(uniform) \
  bind(inject_noise) \
  bind(inject_noise_backward) \
  bind(reparameterize) \
  bind(reparameterize_backward) \
  bind(noise_regression) \
  bind(noise_regression_backward) \
  bind(fusion_weights) \
  bind(fusion_weights_backward) \
  bind(weighted_fusion) \
  bind(weighted_fusion_backward) \
  bind(modality_dropout) \
  bind(modality_dependency) \
  bind(modality_dependency_backward) \
  bind(evidential_fusion) \
  bind(evidential_fusion_backward) \
  bind(evidential_loss) \
  bind(evidential_loss_backward)
