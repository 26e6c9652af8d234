// The kernels of a compiled backend, which its registration.cpp binds. udml_kernels/ops/<op>.py documents the
// arguments.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

namespace udml {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

Tensor normal(std::vector<int64_t> shape, Tensor seed, int64_t stream, OptionalTensor sample_ids, ScalarType dtype);
Tensor uniform(std::vector<int64_t> shape, Tensor seed, int64_t stream, OptionalTensor sample_ids, ScalarType dtype);

std::tuple<Tensor, Tensor, Tensor> reparameterize(Tensor mu, Tensor logvar, Tensor prior_var,
                                                  std::optional<double> std_max, bool sample, OptionalTensor seed,
                                                  int64_t stream, OptionalTensor sample_ids);
std::tuple<Tensor, Tensor, Tensor> reparameterize_backward(OptionalTensor grad_z, OptionalTensor grad_std,
                                                           OptionalTensor grad_kl, Tensor mu, Tensor logvar,
                                                           Tensor prior_var, std::optional<double> std_max,
                                                           bool sample, OptionalTensor seed, int64_t stream,
                                                           OptionalTensor sample_ids, bool needs_prior);

Tensor inject_noise(Tensor x, Tensor sigma, OptionalTensor kinds, int64_t kind, std::vector<double> clamp,
                    double scale, OptionalTensor mean, OptionalTensor std, ScalarType out_dtype, Tensor seed,
                    int64_t stream, OptionalTensor sample_ids);
std::tuple<Tensor, Tensor> inject_noise_backward(Tensor grad, Tensor x, Tensor sigma, OptionalTensor kinds,
                                                 int64_t kind, std::vector<double> clamp, double scale,
                                                 OptionalTensor mean, OptionalTensor std, ScalarType out_dtype,
                                                 Tensor seed, int64_t stream, OptionalTensor sample_ids, bool needs_x,
                                                 bool needs_sigma);

std::tuple<Tensor, Tensor, Tensor> noise_regression(Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
                                                    Tensor bias2, OptionalTensor target, int64_t activation,
                                                    double dropout_p, OptionalTensor seed, int64_t stream,
                                                    OptionalTensor sample_ids);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> noise_regression_backward(
    OptionalTensor grad_noise, OptionalTensor grad_loss, Tensor std, Tensor weight1, Tensor bias1, Tensor weight2,
    Tensor bias2, OptionalTensor target, int64_t activation, double dropout_p, OptionalTensor seed, int64_t stream,
    OptionalTensor sample_ids, Tensor o, int64_t needs);

Tensor fusion_weights(Tensor uncertainty, OptionalTensor dependency, OptionalTensor mask, int64_t g,
                      double temperature, std::optional<double> total);
std::tuple<Tensor, Tensor> fusion_weights_backward(Tensor grad, Tensor uncertainty, OptionalTensor dependency,
                                                   OptionalTensor mask, int64_t g, double temperature,
                                                   std::optional<double> total, bool needs_dependency);
std::tuple<Tensors, Tensor> weighted_fusion(Tensors features, Tensor uncertainty, OptionalTensor dependency,
                                            OptionalTensor mask, int64_t mode, bool residual, int64_t g,
                                            double temperature, std::optional<double> total);
std::tuple<Tensors, Tensor, Tensor> weighted_fusion_backward(Tensors grads, OptionalTensor grad_weights,
                                                             Tensors features, Tensor uncertainty,
                                                             OptionalTensor dependency, OptionalTensor mask,
                                                             int64_t mode, bool residual, int64_t g,
                                                             double temperature, std::optional<double> total,
                                                             bool needs_dependency);

std::tuple<Tensors, Tensor> modality_dropout(Tensors features, Tensor p, bool keep_one, Tensor seed, int64_t stream,
                                             OptionalTensor sample_ids);
Tensor modality_dependency(Tensor logits);
Tensor modality_dependency_backward(Tensor grad, Tensor logits);

Tensor evidential_fusion(Tensor evidence, OptionalTensor mask);
Tensor evidential_fusion_backward(Tensor grad, Tensor evidence, OptionalTensor mask);
Tensor evidential_loss(Tensor evidence, Tensor target, double kl_weight, int64_t reduction);
Tensor evidential_loss_backward(Tensor grad, Tensor evidence, Tensor target, double kl_weight, int64_t reduction);

}  // namespace udml
