"""The authors' checkpoints into `UDML` and back, and the estimators' into their plain twin and back."""

import pytest
import torch
from torch import nn
from udml.layers import NoiseEstimator, NoiseTypeClassifier
from udml.models import UDML, authors_state, build_model, load_authors

from .authors_model import checkpoint
from .test_udml_authors import BETA, CLASSES, CLOSE, GAMMA, HEADS, authors, batch, empty_udml, trunk


@pytest.fixture(autouse=True)
def quiet():
    torch.manual_seed(0)


def changed(net: nn.Module) -> nn.Module:
    """With BatchNorm statistics that are not those of a new one."""
    for buffer in net.buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5 if buffer.is_floating_point() else buffer + 3)
    return net


def their_file(fusion: str) -> tuple[nn.Module, dict]:
    theirs = changed(authors(fusion)).eval()
    theirs.audio_depend, theirs.visual_depend = 2.1, 0.7
    return theirs, checkpoint(theirs, BETA, GAMMA)


def assert_same_answers(ours: UDML, theirs: nn.Module) -> None:
    audio, frames, _, _ = batch(torch.tensor([5]), True)
    with torch.no_grad():
        expected = theirs.eval()(audio, frames, uncertainty=True)
        output = ours.eval()({"audio": audio, "visual": frames})
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(output.unimodal, torch.stack(expected.unimodal), **CLOSE)
    torch.testing.assert_close(output.weights, expected.weights, **CLOSE)


@pytest.mark.parametrize("fusion", HEADS)
def test_their_file_into_udml_and_back(fusion, tmp_path):
    theirs, saved = their_file(fusion)
    ours = empty_udml(fusion)
    load_authors(ours, saved)
    assert_same_answers(ours, theirs)
    torch.testing.assert_close(authors_state(ours), saved, rtol=0, atol=0)
    torch.save(saved, tmp_path / "best.pth")
    unwrapped = saved | {"model": {k.removeprefix("module."): v for k, v in saved["model"].items()}}
    for source in (tmp_path / "best.pth", str(tmp_path / "best.pth"), unwrapped):
        other = changed(empty_udml(fusion))
        load_authors(other, source)
        torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert ours.dependency.alpha.tolist() == [2.1, 0.7]


@pytest.mark.parametrize("fusion", HEADS)
def test_udml_into_their_model_and_back(fusion):
    ours, (theirs, _) = changed(empty_udml(fusion)), their_file(fusion)
    saved = authors_state(ours)
    assert (saved["beta"], saved["gamma"]) == (BETA, GAMMA)
    theirs.load_state_dict({key.removeprefix("module."): value for key, value in saved["model"].items()})
    theirs.audio_depend, theirs.visual_depend = saved["audio_depend"], saved["visual_depend"]
    assert_same_answers(ours, theirs)
    other = empty_udml(fusion)
    load_authors(other, checkpoint(theirs, BETA, GAMMA))
    expected = ours.state_dict() | {"dependency.batches": torch.ones(2, dtype=torch.int64)}
    torch.testing.assert_close(dict(other.state_dict()), expected, rtol=0, atol=0)
    before = ours.heads["audio"].mu[0].weight.clone()
    for value in saved["model"].values():
        value.zero_()
    assert torch.equal(ours.heads["audio"].mu[0].weight, before), "what is given out are copies"


def test_alpha_is_part_of_a_checkpoint():
    ours = empty_udml("concat")
    load_authors(ours, their_file("concat")[1])
    reloaded = empty_udml("concat")
    reloaded.load_state_dict(ours.state_dict())
    assert reloaded.dependency.alpha.tolist() == [2.1, 0.7]


def test_faults_of_a_file_are_named_before_anything_is_written():
    _, saved = their_file("concat")
    state = saved["model"]
    head, last = "module.audio_net.mu_dul_backbone.0.weight", "module.visual_variance_estimator.2.bias"
    without = {k: v for k, v in state.items() if k not in (head, last)}
    cases = (
        ({"model": without}, r"lacks audio_net\.mu_dul_backbone\.0\.weight, visual_variance_estimator\.2\.bias$"),
        ({"model": state | {"module.unimodal_fc.bias": torch.ones(2)}}, r"it alone has unimodal_fc\.bias$"),
        ({"model": state | {head: state[head].flatten(1)}}, r"shape audio_net\.mu.* \(5, 5\) for \(5, 5, 1, 1\)$"),
        ({"model": state | {head: 3}}, r"of another shape audio_net\.mu_dul_backbone\.0\.weight int for"),
        ({"model": their_file("sum")[1]["model"]}, r"lacks fusion_module\.fc_out.*alone has fusion_module\.fc_x"),
        (
            {"model": {f"module.{k}": v for k, v in state.items()}},
            r"it lacks audio_net\.conv1.* and \d+ more; it alone",
        ),
        ({"audio_depend": -1.0}, r"checkpoint\['audio_depend'\]: expected a positive number, got -1.0"),
        ({"visual_depend": None}, r"checkpoint\['visual_depend'\]: expected a positive number, got None"),
        ({"model": None}, r"checkpoint: expected 'model', a state dict, got the keys model, audio_depend"),
    )
    ours = empty_udml("concat")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            load_authors(ours, saved | change)
    with pytest.raises(TypeError, match="checkpoint: expected a file or a mapping, got list"):
        load_authors(ours, [saved])
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_models_that_their_layout_does_not_hold():
    def udml(names=("audio", "visual"), fusion="concat", **options) -> UDML:
        encoders = {name: nn.Sequential(trunk(1)) for name in names}
        return UDML(encoders, CLASSES, fusion, width=5, **options)

    cases = (
        (udml(), r"model: expected UDML\(preset='authors'\) with embeddings, estimator and dependency"),
        (udml(preset="authors", dependency=False), "with embeddings, estimator and dependency"),
        (udml(("visual", "audio"), preset="authors"), "expected the modalities audio, visual, got visual, audio"),
        (udml(preset="authors", fusion="attention"), "a fusion of concat, sum, gated, film, got AttentionFusion"),
    )
    for model, message in cases:
        for call in (lambda m=model: load_authors(m, {}), lambda m=model: authors_state(m)):
            with pytest.raises(ValueError, match=message):
                call()
    static = build_model("static", {"audio": nn.Linear(2, 2), "visual": nn.Linear(2, 2)}, CLASSES)
    with pytest.raises(TypeError, match=r"model: expected UDML\(preset='authors'\), got Static"):
        authors_state(static)


@pytest.mark.parametrize("middle", [(), (nn.GELU(), nn.Dropout(0.1)), (nn.Dropout(0.1),)])
def test_an_estimator_into_its_plain_twin_and_back(middle):
    twin = nn.ModuleList(nn.Sequential(nn.Linear(5, 8), *middle, nn.Linear(8, 1)) for _ in range(3)).eval()
    activation = "gelu" if len(middle) == 2 else "identity"
    estimator = NoiseEstimator(3, 5, 8, activation=activation, dropout_p=0.1).eval()
    twin.load_state_dict(estimator.twin_state_dict(last=1 + len(middle)))
    std = [torch.rand(6, 5) for _ in range(3)]
    expected = torch.cat([(net(s) / 2).exp() for net, s in zip(twin, std, strict=True)], 1)
    torch.testing.assert_close(estimator(std)[0], expected)
    other = NoiseEstimator(3, 5, 8, activation=activation).eval()
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(other.state_dict(), estimator.state_dict(), rtol=0, atol=0)


def test_a_classifier_into_its_plain_twin():
    twin = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    classifier = NoiseTypeClassifier(2, 2, ("clean", "gaussian", "dropout"), hidden=8)
    twin.load_state_dict(classifier.twin_state_dict())
    assert torch.equal(twin[1][2].weight, classifier.weight2[1])
    with pytest.raises(ValueError, match=r"last: expected 1, 2 or 3, .* got 4"):
        classifier.twin_state_dict(last=4)
