"""Each method against its formula in plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from udml.encoders import MLPEncoder
from udml.losses import LossWeights, cross_entropy, udml_loss
from udml.models import METHODS, OGMGE, PE, QMF, TMC, UDML, Greedy, MultimodalModel, Oracle, Static
from udml.models.embedding import input_statistics

BATCH, WIDTH, CLASSES, SEED = 12, 6, 4, torch.tensor([3])


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def make(kind: type[MultimodalModel], modalities: int = 3, **options) -> MultimodalModel:
    return kind({f"m{m}": MLPEncoder(5, WIDTH) for m in range(modalities)}, CLASSES, **options)


def batch_for(model: MultimodalModel) -> tuple[dict[str, Tensor], Tensor]:
    return {name: torch.randn(BATCH, 5) for name in model.modalities}, torch.randint(CLASSES, (BATCH,))


def step(model: MultimodalModel, inputs, target, **options):
    model.zero_grad()
    output = model(inputs, seed=SEED, **options)
    sum(model.loss(output, target).values()).backward()
    return output


def gradients(model: MultimodalModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_static_is_the_head_on_the_features():
    model = make(Static)
    inputs, target = batch_for(model)
    output = model(inputs, sigma=torch.ones(BATCH, 3))
    fused = F.linear(torch.cat(output.features, 1), model.fusion.weight, model.fusion.bias)
    torch.testing.assert_close(output.logits, fused)
    assert (output.weights == 1).all() and output.noise is output.kl is None
    terms = model.loss(output, target)
    torch.testing.assert_close(terms["unimodal"], sum(F.cross_entropy(u, target) for u in output.unimodal))


def test_pe_weighs_by_the_embeddings_variance():
    model = make(PE).eval()
    inputs, target = batch_for(model)
    output = model(inputs)
    std = [(model.heads[n].logvar(model.encoders[n](x)) / 2).exp() for n, x in inputs.items()]
    inverse = torch.stack([1 / s.square().mean(1) for s in std], 1)
    weights = 3 * inverse / inverse.sum(1, keepdim=True)
    torch.testing.assert_close(output.weights, weights)
    torch.testing.assert_close(output.noise, inverse.rsqrt())
    assert (model(inputs, weighting=False).weights == 1).all()
    assert set(model.loss(output, target, sigma=torch.ones(BATCH, 3))) == {"task", "unimodal", "kl"}
    F.cross_entropy(output.logits, target).backward()
    assert model.heads["m0"].logvar[0].weight.grad.abs().sum() > 0, "the task shapes the std through the weights"


def dempster(first: Tensor, second: Tensor) -> Tensor:
    """Two Dirichlets' evidence (B, K) combined by the reduced rule on beliefs and uncertainties."""
    (b1, u1), (b2, u2) = (
        (e / (e + 1).sum(1, keepdim=True), CLASSES / (e + 1).sum(1, keepdim=True)) for e in (first, second)
    )
    conflict = (b1.sum(1) * b2.sum(1) - (b1 * b2).sum(1)).unsqueeze(1)
    belief = (b1 * b2 + b1 * u2 + b2 * u1) / (1 - conflict)
    uncertainty = u1 * u2 / (1 - conflict)
    return belief * CLASSES / uncertainty


def evidence_loss(evidence: Tensor, target: Tensor, annealed: float) -> Tensor:
    alpha = evidence + 1
    hot = F.one_hot(target, CLASSES)
    fit = (hot * (alpha.sum(1, keepdim=True).digamma() - alpha.digamma())).sum(1)
    wrong = torch.distributions.Dirichlet(hot + (1 - hot) * alpha)
    flat = torch.distributions.Dirichlet(torch.ones_like(alpha))
    return (fit + annealed * torch.distributions.kl_divergence(wrong, flat)).mean()


@pytest.mark.parametrize("epoch_fraction", [0.02, 0.5])
def test_tmc(epoch_fraction):
    model = make(TMC, 2, annealing=0.1, gamma=0.7).double()
    inputs, target = batch_for(model)
    output = model({name: x.double() for name, x in inputs.items()})
    first, second = F.softplus(output.unimodal)
    combined = dempster(first, second)
    torch.testing.assert_close(output.logits.softmax(1), (combined + 1) / (combined + 1).sum(1, keepdim=True))
    annealed = min(1.0, epoch_fraction / 0.1)
    terms = model.loss(output, target, epoch_fraction=epoch_fraction)
    torch.testing.assert_close(terms["task"], evidence_loss(combined, target, annealed))
    alone = evidence_loss(first, target, annealed) + evidence_loss(second, target, annealed)
    torch.testing.assert_close(terms["unimodal"], 0.7 * alone)


def test_qmf():
    model = make(QMF)
    inputs, target = batch_for(model)
    output = model(inputs)
    confidence = output.unimodal.exp().sum(2).log() / 10
    torch.testing.assert_close(output.weights, confidence.T)
    torch.testing.assert_close(output.logits, (confidence.unsqueeze(2) * output.unimodal).sum(0))
    F.cross_entropy(output.logits, target).backward()
    # The bias is in every modality's logits; the confidence passes no gradient.
    errors = output.logits.softmax(1) - F.one_hot(target, CLASSES)
    expected = (confidence.detach().sum(0).unsqueeze(1) * errors).mean(0)
    torch.testing.assert_close(model.fusion.bias.grad, expected)


@pytest.mark.parametrize("modalities", [2, 3])
def test_ogm_ge(modalities):
    model = make(OGMGE, modalities, alpha=0.4)
    inputs, target = batch_for(model)
    output = step(model, inputs, target)
    before = gradients(model)
    model.after_backward(output, target, seed=SEED)
    scores = output.unimodal.softmax(2)[:, torch.arange(BATCH), target].sum(1)
    streams = set()
    for m, name in enumerate(model.modalities):
        rho = scores[m] / (scores.sum() - scores[m]) * (modalities - 1)
        factor = 1 - torch.tanh(0.4 * rho) if rho > 1 else 1.0
        for key, parameter in model.named_parameters():
            if key.split(".")[1] != name:
                continue
            noise = parameter.grad - factor * before[key]
            if before[key].numel() > 20:
                # Its own std, within what a sample of this size shows; the same noise nowhere else.
                ratio = noise.std() / before[key].std()
                assert abs(ratio - 1) < 5 / math.sqrt(2 * noise.numel()), key
            streams.add(round((noise.flatten()[0] / before[key].std(correction=0)).item(), 4))
    assert len(streams) > 5 * modalities, "parameters share their noise"
    assert torch.equal(model.fusion.weight.grad, before["fusion.weight"])
    again = make(OGMGE, modalities, alpha=0.4)
    again.load_state_dict(model.state_dict())
    for parameter, (_, gradient) in zip(again.parameters(), before.items(), strict=True):
        parameter.grad = gradient.clone()
    again.after_backward(output, target, seed=SEED)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_ogm_ge_without_noise_slows_the_leader_alone():
    model = make(OGMGE, 2, enhance=False)
    inputs, _ = batch_for(model)
    # Labels that the first modality already knows.
    target = model(inputs).unimodal[0].argmax(1)
    output = step(model, inputs, target)
    before = gradients(model)
    model.after_backward(output, target, seed=SEED)
    factors = model.factors(output, target)
    assert 0 < factors[0] < 1 and factors[1] == 1
    for key, parameter in model.named_parameters():
        expected = before[key] * (factors[0] if key.split(".")[1] == "m0" else 1)
        torch.testing.assert_close(parameter.grad, expected)


def greedy_speeds(model: Greedy, inputs, target) -> Tensor:
    """Squared gradients that each loss alone sends into each branch, over the branch's squared parameters: (2, M)."""
    output = model(inputs)
    squares = []
    for loss in (F.cross_entropy(output.logits, target), sum(F.cross_entropy(u, target) for u in output.unimodal)):
        found = torch.autograd.grad(loss, output.features, retain_graph=True)
        squares.append(torch.stack([g.square().sum() for g in found]))
    sizes = torch.stack([sum(p.square().sum() for p in model.branch(name)) for name in model.modalities])
    return torch.stack(squares) / sizes


def test_greedy_alternates_windows_of_rebalancing_and_regular_steps():
    model = make(Greedy, 3, window=2, warmup=1, tolerance=0.0, gamma=1.0)
    inputs, target = batch_for(model)
    total, rebalanced = torch.zeros(2, 3), []
    for _ in range(8):
        expected = greedy_speeds(model, inputs, target).detach()
        output = step(model, inputs, target)
        before = gradients(model)
        model.after_backward(output, target, seed=SEED)
        moved = {name: any(p.grad.any() for p in model.branch(name)) for name in model.modalities}
        rebalanced.append(not all(moved.values()))
        if rebalanced[-1]:
            slow = (total[0].log() - total[1].log()).argmin().item()
            assert [name for name, moves in moved.items() if moves] == [model.modalities[slow]]
            for key, parameter in model.named_parameters():
                if key.startswith("fusion.") or key.split(".")[1] == model.modalities[slow]:
                    assert torch.equal(parameter.grad, before[key])
        else:
            total += expected
            assert all(torch.equal(p.grad, before[key]) for key, p in model.named_parameters())
        torch.testing.assert_close(torch.stack([model.fused_speed, model.unimodal_speed]), total)
    # One of warm-up, one that measures, two of rebalancing, two regular that are owed and one that measures, ...
    assert rebalanced == [False, False, True, True, False, False, False, True]


def test_greedy_leaves_equal_speeds_alone():
    model = make(Greedy, 2, warmup=0, tolerance=1e9)
    inputs, target = batch_for(model)
    for _ in range(3):
        model.after_backward(step(model, inputs, target), target, seed=SEED)
    assert model.clock == 0


@pytest.mark.parametrize("reference", [None, 3.0])
def test_udml_weights_and_terms(reference):
    options = {"temperature": 2.0, "floor": 0.5, "prior_unit": 0.3, "prior_floor": 0.2, "lam": 0.2}
    model = make(UDML, **options, reference=reference)
    inputs, target = batch_for(model)
    sigma = 5 * torch.rand(BATCH, 3)
    output = step(model, inputs, target, sigma=sigma)
    alpha = output.unimodal.detach().abs().sum(2).mean(1)
    torch.testing.assert_close(output.dependency, alpha)
    inverse = (1 / ((output.noise.detach() ** 2 + 0.25) * alpha)).sqrt()
    rest = 0 if reference is None else 3 / ((reference**2 + 0.25) * alpha.mean()).sqrt()
    torch.testing.assert_close(output.weights, 3 * inverse / (inverse.sum(1, keepdim=True) + rest))
    weighted = torch.cat([output.weights[:, m : m + 1] * f for m, f in enumerate(output.features)], 1)
    torch.testing.assert_close(output.logits, F.linear(weighted, model.fusion.weight, model.fusion.bias))
    torch.testing.assert_close(model.loss(output, target)["noise"], 0.2 * F.mse_loss(output.noise, sigma))
    torch.testing.assert_close(model.prior_var(sigma), (0.3 * sigma) ** 2 + 0.04)
    kl = torch.zeros(BATCH)
    for m, name in enumerate(model.modalities):
        prior = model.prior_var(sigma)[:, m : m + 1]
        x = inputs[name]
        mu, logvar = model.heads[name].distribution(model.encoders[name](x), input_statistics(x))
        kl += torch.distributions.kl_divergence(
            torch.distributions.Normal(mu, (logvar / 2).exp()), torch.distributions.Normal(0, prior.sqrt())
        ).sum(1)
    torch.testing.assert_close(output.kl, kl, rtol=1e-4, atol=1e-4)


def test_oracle_weighs_by_the_truth_in_training_and_evaluation():
    model = make(Oracle, floor=1.0, temperature=1.0, reference=None, dependency=False)
    inputs, target = batch_for(model)
    sigma = 5 * torch.rand(BATCH, 3)
    inverse = 1 / (sigma**2 + 1)
    expected = 3 * inverse / inverse.sum(1, keepdim=True)
    for mode in (True, False):
        output = model.train(mode)(inputs, sigma=sigma, seed=SEED)
        torch.testing.assert_close(output.weights, expected)
        assert "noise" not in model.loss(output, target, sigma=sigma)
    assert (model(inputs, weighting=False).weights == 1).all()


@pytest.mark.parametrize("estimator", [True, False])
@pytest.mark.parametrize("dependency", [True, False])
def test_ablation_of_the_weights(estimator, dependency):
    model = make(UDML, estimator=estimator, dependency=dependency, temperature=1.0, floor=1.0, reference=None)
    inputs, target = batch_for(model)
    output = step(model, inputs, target, sigma=torch.rand(BATCH, 3))
    uncertainty = output.noise.detach() ** 2 + 1 if estimator else torch.ones(BATCH, 3)
    inverse = 1 / (uncertainty * (output.dependency if dependency else 1))
    torch.testing.assert_close(output.weights, 3 * inverse / inverse.sum(1, keepdim=True))
    assert (output.noise is None, output.dependency is None) == (not estimator, not dependency)
    assert all(p.grad is not None for p in model.parameters())


def test_ablation_without_probabilistic_embeddings():
    model = make(UDML, probabilistic=False)
    inputs, target = batch_for(model)
    output = step(model, inputs, target, sigma=torch.rand(BATCH, 3))
    assert output.kl is None and set(model.loss(output, target)) == {"task", "unimodal", "noise"}
    torch.testing.assert_close(output.std, [F.softplus(f) for f in output.features])
    assert output.noise_loss.requires_grad and all(p.grad is not None for p in model.parameters())
    static = make(Static)
    extra = set(dict(model.named_parameters())) - set(dict(static.named_parameters()))
    assert {name.split(".")[0] for name in extra} == {"estimator"}


def test_per_sample_dependency():
    model = make(UDML, per_sample=True)
    output = model(batch_for(model)[0], seed=SEED)
    torch.testing.assert_close(output.dependency, output.unimodal.detach().abs().sum(2).T)


def test_segmentation_losses_are_at_the_targets_size():
    logits, target = torch.randn(2, CLASSES, 4, 3), torch.randint(CLASSES, (2, 8, 6))
    target[0] = 255
    large = F.interpolate(logits, size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(large, target, ignore_index=255))
    assert cross_entropy(logits, torch.full_like(target, 255)) == 0
    unimodal = torch.stack([logits, 2 * logits])
    total = udml_loss(logits, unimodal, None, None, target, LossWeights(unimodal=0.5))
    alone = sum(F.cross_entropy(x, target, ignore_index=255) for x in (large, 2 * large))
    torch.testing.assert_close(total, F.cross_entropy(large, target, ignore_index=255) + 0.5 * alone)


def test_every_method_has_the_same_backbone():
    static = {name: p.shape for name, p in make(Static).named_parameters()}
    for name, kind in METHODS.items():
        theirs = {name: p.shape for name, p in make(kind).named_parameters()}
        assert static.items() <= theirs.items(), name
        own = set(theirs) - set(static)
        assert all(".logvar." in key or key.startswith("estimator.") for key in own), name
