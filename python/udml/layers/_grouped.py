from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GroupedMLP(nn.Module):
    """Parameters of M two-layer perceptrons, stacked: weight1 (M, H, D), bias1 (M, H), weight2 (M, O, H), bias2 (M, O).

    A state dict of their plain counterpart ("twin") loads too: ModuleList(Sequential(Linear, ..., Linear)) with up to
    two modules without parameters (an activation, dropout) between; `twin_state_dict` converts back.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def __init__(self, modalities: int, in_features: int, hidden: int, out_features: int):
        super().__init__()
        self.modalities = modalities
        self._stack([(nn.Linear(in_features, hidden), nn.Linear(hidden, out_features)) for _ in range(modalities)])

    def twin_state_dict(self, last: int = 2) -> dict[str, Tensor]:
        """The parameters under their names in the twin, ModuleList(Sequential(Linear, ..., Linear)), as views.

        Args:
            last: the second Linear's index in the Sequential: 1 plus the number of modules before it, 0 to 2.

        Raises:
            ValueError: for any other index.
        """
        if last not in (1, 2, 3):
            raise ValueError(f"last: expected 1, 2 or 3, the second Linear's place in the Sequential, got {last!r}")
        return {
            f"{m}.{place}.{kind}": getattr(self, f"{kind}{i}").detach()[m]
            for m in range(self.modalities)
            for i, place in ((1, 0), (2, last))
            for kind in ("weight", "bias")
        }

    def _stack(self, pairs: Sequence[Sequence[nn.Linear]]) -> None:
        for i, layers in enumerate(zip(*pairs, strict=True), 1):
            setattr(self, f"weight{i}", nn.Parameter(torch.stack([layer.weight.detach() for layer in layers])))
            setattr(self, f"bias{i}", nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for layer, attribute in ((1, "weight"), (1, "bias"), (2, "weight"), (2, "bias")):
            name = f"{prefix}{attribute}{layer}"
            keys = [_twin_key(state_dict, f"{prefix}{m}.", layer, attribute) for m in range(self.modalities)]
            if name not in state_dict and None not in keys:
                state_dict[name] = torch.stack([state_dict.pop(key) for key in keys])
        super()._load_from_state_dict(state_dict, prefix, *args)


def _twin_key(state_dict, prefix: str, layer: int, attribute: str) -> str | None:
    places = ("0",) if layer == 1 else ("1", "2", "3")
    return next((key for p in places if (key := f"{prefix}{p}.{attribute}") in state_dict), None)
