"""FedClient under RecordDp: what it refuses, what it turns off, and a clip norm that moves."""

import numpy as np
import pytest
import torch
from torch import nn

from fl_core.campaign.guarantees import AdaptiveClip, GroupBounds, RecordDp
from fl_core.errors import CampaignError, TrainingError
from fl_core.facade import FedClient

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:no privacy")
PRIVACY = RecordDp(epsilon=8, delta=1e-5, clip_norm=1.0, sampling_rate=0.25, noise_multiplier=1.0)


class TwoLayers(nn.Module):
    """A layer beside a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


def examples(n: int, width: int = 4) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.ones(width), "labels": torch.tensor(i % 2)} for i in range(n)]


def tensors_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


def test_unit_other_than_the_example_is_refused():
    privacy = PRIVACY.model_copy(update={"unit": "patient_id", "max_rows_per_unit": 5})

    with pytest.raises(CampaignError, match="'patient_id', and examples here name no such unit"):
        FedClient(TwoLayers(), examples(4), privacy=privacy)


def test_bounds_for_a_head_need_tensors_of_that_name():
    bounds = GroupBounds(adapter=0.5, head=1.0)
    privacy = PRIVACY.model_copy(update={"clip_norm": bounds})
    nameless = nn.Sequential(nn.Linear(4, 2))

    with pytest.raises(TrainingError, match=r"0 of the 2 trained tensors are called head\.\*"):
        FedClient(nameless, examples(2), privacy=privacy)


def test_private_training_with_two_bounds_moves_adapter_and_head():
    bounds = GroupBounds(adapter=0.5, head=1.0)
    privacy = PRIVACY.model_copy(update={"clip_norm": bounds})
    client = FedClient(TwoLayers(), examples(8), privacy=privacy)
    before = tensors_of(client.model)

    client.train(num_epochs=1)

    after = tensors_of(client.model)
    assert all(not np.array_equal(before[name], after[name]) for name in before)


def test_moving_clip_norm_goes_on_from_call_to_call():
    privacy = PRIVACY.model_copy(update={"adaptive_clip": AdaptiveClip(count_stddev=2.0)})
    client = FedClient(TwoLayers(), examples(8), privacy=privacy)
    client.train(num_epochs=1)
    after_first = client._clip_norm

    client.train(num_epochs=1)

    assert after_first not in {None, PRIVACY.clip_norm}
    assert client._clip_norm != after_first


class Dropping(nn.Module):
    """Drops half of its inputs while in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)
        self.modes: list[bool] = []

    def forward(self, x):
        self.modes.append(self.drop.training)
        return self.head(self.drop(x))


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
def test_dropout_is_off_under_privacy_and_on_without(privacy):
    client = FedClient(Dropping(), examples(6, width=6), privacy=privacy)

    client.train(num_epochs=1)

    assert set(client.model.modes) == {privacy is None}
