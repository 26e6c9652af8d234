"""The hog data, and the options of UDML for modalities that learn unequally. Needs the data packages."""

import pytest
import torch
from udml.data import DataError, hog, load_data
from udml.encoders import MLPEncoder, TanhEncoder
from udml.layers.noise import Noise
from udml.models import UDML
from udml.models.embedding import LogvarBranch, NormalEmbedding, input_statistics

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")
WIDTH = 8


def test_hog_is_stratified_standardised_and_keeps_its_test_part():
    one, other = load_data("hog", seed=0), load_data("hog", seed=1)
    assert one.spec.modalities == hog.VIEWS and one.spec.noise == dict.fromkeys(hog.VIEWS, Noise(0.25))
    assert [len(part) for part in one.splits.values()] == [2250, 750, 2000]
    assert torch.equal(one.test.batch.index, other.test.batch.index)
    assert not torch.equal(one.validation.batch.index, other.validation.batch.index)
    assert torch.cat([part.batch.index for part in one.splits.values()]).sort().values.tolist() == list(range(5000))
    for x in one.train.batch.inputs.values():
        torch.testing.assert_close(x.mean(0), torch.zeros(192), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "slow, encoder, size", [("encoder", TanhEncoder, 1.0), ("scale", MLPEncoder, 0.05), ("none", MLPEncoder, 1.0)]
)
def test_the_last_view_is_slow(slow, encoder, size):
    data = load_data("hog", views=("hog3", "hog1"), slow=slow)
    made = data.encoders(WIDTH)
    assert type(made["hog3"]) is MLPEncoder and type(made["hog1"]) is encoder
    assert data.spec.noise["hog1"] == Noise(0.25 * size) and data.spec.noise["hog3"] == Noise(0.25)
    assert data.train.batch.inputs["hog1"].std().item() == pytest.approx(
        size * data.train.batch.inputs["hog3"].std().item(), rel=0.1
    )
    assert made["hog1"](data.train.batch.inputs["hog1"][:3]).shape == (3, WIDTH)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": ("hog0",)}, "views: expected 2 to 4 different ones of hog0, hog1, hog2, hog3, got hog0"),
        ({"views": ("hog0", "hog9")}, "views: .*got hog0, hog9"),
        ({"slow": "yes"}, "slow: expected one of encoder, scale, none, got 'yes'"),
    ],
)
def test_hog_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_data("hog", **options)


def test_hog_refuses_other_files(tmp_path):
    other = tmp_path / "multiview_mnist.hdf5"
    other.write_bytes(b"not the data")
    for root in (other, tmp_path, tmp_path / "absent.hdf5"):
        with pytest.raises(DataError, match=r"hdf5: expected an HDF5 file with Labels and View0 to View3, got"):
            load_data("hog", root)


def test_input_statistics_rise_with_noise_and_ignore_the_offset_of_differences():
    x, noise = torch.randn(5, 3, 40).cumsum(2), torch.randn(5, 3, 40)
    sizes = torch.stack([input_statistics(x + level * noise) for level in (0.0, 10.0, 100.0)])
    assert sizes.shape == (3, 5, 4) and bool((sizes.diff(dim=0) > 0).all())
    rms, mean, rms_steps, mean_steps = input_statistics(torch.tensor([[3.0, -3.0, 3.0]]))[0].exp().tolist()
    assert (rms, mean, rms_steps, mean_steps) == pytest.approx((3, 3, 6, 6))
    assert torch.isfinite(input_statistics(torch.zeros(2, 1))).all()


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_gradients_of_the_log_variance_into_the_features(factor):
    plain, scaled = (NormalEmbedding(6, 4, pool=True, branch=LogvarBranch(gradient=g)).eval() for g in (1.0, factor))
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(5, 6, 7, requires_grad=True)
    (mu, logvar), (same_mu, same) = plain.moments(x), scaled.moments(x)
    torch.testing.assert_close(same, logvar)
    torch.testing.assert_close(same_mu, mu)
    whole, part = (torch.autograd.grad(v.sin().sum(), x, allow_unused=True)[0] for v in (logvar, same))
    torch.testing.assert_close(torch.zeros_like(x) if part is None else part, factor * whole)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_statistics_enter_the_log_variance_alone(task, hidden):
    from .test_udml_models import batch_for, make, train_step

    model = make("udml", task=task, input_statistics=True, logvar_gradient=0.0, logvar_hidden=hidden)
    inputs, target, step = batch_for(model)
    output, _ = train_step(model, inputs, target, **step)
    assert output.noise is not None and bool(output.noise.isfinite().all())
    assert all(p.grad is not None for p in model.heads["m0"].logvar.parameters())
    # The estimator's loss alone does not reach the encoders.
    model.zero_grad()
    output = model(inputs, **step)
    output.noise_loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.encoders.parameters())


def test_alpha_on_gradients_changes_gradients_alone():
    encoders = {name: torch.nn.Linear(4, WIDTH) for name in ("a", "b")}
    model = UDML(encoders, 3, dependency_gradient=1.0)
    model.dependency.alpha.copy_(torch.tensor([3.0, 1.0]))
    same = UDML({name: torch.nn.Linear(4, WIDTH) for name in ("a", "b")}, 3)
    same.load_state_dict(model.state_dict())
    inputs = {name: torch.randn(6, 4) for name in encoders}
    step = {"sigma": torch.rand(6, 2), "seed": torch.tensor([3])}
    for m in (model, same):
        output = m(inputs, **step)
        m.loss(output, torch.arange(6) % 3)["task"].backward()
        m.logits = output.logits
    torch.testing.assert_close(model.logits, same.logits)
    for name, factor in (("a", 2 / 3), ("b", 2.0)):
        torch.testing.assert_close(model.encoders[name].weight.grad, factor * same.encoders[name].weight.grad)
