"""A plain implementation, without noise, so that two of them can be compared; and what its modules are swapped for."""

from functools import partial

import torch
from torch import nn
from udml.layers import NoiseEstimator
from udml.patching import concat_fusion, noise_estimator, probabilistic_head

BATCH, WIDTH, CLASSES, HIDDEN = 6, 5, 3, 8
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu, self.logvar = (nn.Sequential(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(2))

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        return mu, (logvar / 2).exp()


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 4), Head()
        self.estimator = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Dropout(0.0), nn.Linear(HIDDEN, 1))

    def forward(self, x):
        mu, std = self.head(self.encoder(x).relu())
        return mu, (self.estimator(std) / 2).exp()


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.visual = Branch(), Branch()
        self.classifier = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, audio, visual):
        (a, s_a), (v, s_v) = self.audio(audio), self.visual(visual)
        return self.classifier(torch.cat((a / s_a, v / s_v), 1))


class Estimators(nn.ModuleList):
    """M estimators that are called as `NoiseEstimator` is."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)) for _ in range(2))

    def forward(self, std):
        return torch.cat([(net(s.detach()) / 2).exp() for net, s in zip(self, std, strict=True)], 1), None


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.estimators = Estimators()

    def forward(self, x):
        return self.estimators([x, 2 * x])[0]


def relu_estimator(modalities=2, hidden=HIDDEN):
    return NoiseEstimator(modalities, WIDTH, hidden, activation="relu")


def same_outputs():
    return partial(probabilistic_head, outputs=("mu", "std"))


def twins():
    return {
        "audio.head": same_outputs(),
        "visual.head": same_outputs(),
        "audio.estimator": noise_estimator,
        "visual.estimator": noise_estimator,
        "classifier": partial(concat_fusion, widths=[WIDTH, WIDTH]),
    }


def inputs():
    return torch.randn(BATCH, 3), torch.randn(BATCH, 3)


def step(model, optimizer, batch):
    optimizer.zero_grad()
    model(*batch).square().mean().backward()
    optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
