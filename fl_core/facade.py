"""The classic federated loop in ten lines, over the parts that campaigns use.

A server, some clients, any torch module: clients train on examples of their own, upload a signed
delta, the server averages and the clients download. Only parameters that ask for a gradient
travel, so a model with LoRA sends its adapter and a plain model sends everything; buffers, such as
running statistics, stay where they are. Training, clipping, noise, signatures, payload checks and
averaging are those of a campaign. What a campaign adds is left out: no ledger on disk (a budget
lives as long as its client object), no gate, no store, no deadline, and a client's key is trusted
at its first upload.

    server = FedServer(model, num_clients=2)
    clients = [FedClient(model, examples) for examples in datasets]
    for _ in range(10):
        for client in clients:
            client.train(num_epochs=1)
            client.upload_model_update(server)
        server.aggregate_updates()
        server.update_global_model()
        for client in clients:
            client.download_global_model(server)
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor, nn

from fl_core.aggregation.aggregator import AGGREGATORS, Aggregate, Member, member_order
from fl_core.artifacts.documents import sha256_hex
from fl_core.campaign.components import ComponentSpec
from fl_core.campaign.guarantees import ROW, RecordDp
from fl_core.campaign.specs import TrainingSpec
from fl_core.errors import (
    BudgetExhausted,
    CampaignError,
    QuorumNotReached,
    TrainingError,
    UpdateRejected,
)
from fl_core.privacy.accounting import epsilon as accounted_epsilon
from fl_core.privacy.mechanism import MECHANISMS, NoisePlan, NoiseSetting
from fl_core.privacy.randomness import SecureStream, SeededStream
from fl_core.training.examples import columns_of_examples, module_losses, public_probe
from fl_core.training.model_checks import require_groups
from fl_core.training.steps import run_steps
from fl_core.training.trainee import Losses, Trainee
from fl_core.updates.manifest import UpdateManifest
from fl_core.updates.payload import PayloadLimits, decode_tensors, encode_tensors, shapes_of
from fl_core.updates.records import Charge, ComposedEvent, EventRecord, GateReport
from fl_core.updates.signing import generate_key, public_hex, sign
from fl_core.updates.update import Array
from fl_core.updates.verify import Expected, verify_manifest, verify_payload, verify_tensors

_CODEC = "float32"
# A facade has no gate; its manifests say so by the hash of these words.
_NO_GATE = GateReport(suite_sha256=sha256_hex(b"facade: no gate"), passed=True)
_HEADER_BYTES = 1 << 20
_LARGEST_MICRO_BATCH = 1024


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client trains.

    Attributes:
        learning_rate: Step size.
        batch_size: Rows per step; under RecordDp the public divisor of the gradient sum.
        optimizer: ``adam`` or ``sgd``; starts afresh in every call of ``train``.
        micro_batch: Rows per forward pass under RecordDp.
        losses: One loss per row from the model and a batch; cross entropy on logits if left out.
        seed: Makes the shuffling repeatable; refused under RecordDp, whose noise must be secret.
    """

    learning_rate: float = 1e-3
    batch_size: int = 16
    optimizer: Literal["sgd", "adam"] = "adam"
    micro_batch: int = 16
    losses: Losses = module_losses
    seed: int | None = None


class FedServer:
    """Averages the clients' updates into a global model.

    Args:
        model: Any torch module; the server works on a copy.
        num_clients: Updates that a round needs.
    """

    def __init__(self, model: nn.Module, num_clients: int) -> None:
        if num_clients < 1:
            raise CampaignError(f"num_clients is {num_clients}, it must be 1 or more")
        self.model = copy.deepcopy(model)
        self.num_clients = num_clients
        self.round = 1
        self._keys: dict[str, str] = {}
        self._updates: dict[str, Member] = {}
        self._aggregate: Aggregate | None = None

    @property
    def global_tensors(self) -> dict[str, Array]:
        """Copies of the global model's trained tensors by name, float32."""
        return _tensors_of(self.model)

    def receive(self, manifest: UpdateManifest, payload: bytes) -> None:
        """Check a client's update and keep it for this round.

        Raises:
            UpdateRejected: A signature, base, round, shape, hash or value is wrong, the client has
                sent one in this round, or there are more clients than ``num_clients``.
        """
        shapes = shapes_of(self.global_tensors)
        n_bytes = 4 * sum(math.prod(shape) for shape in shapes.values()) + _HEADER_BYTES
        expected = Expected(
            campaign_digest=layout_sha256(self.model),
            round=self.round,
            base_hash=tensors_sha256(self.model),
            site=manifest.site,
            public_key=self._keys.get(manifest.site, ""),
            codec=_CODEC,
            shapes=shapes,
            # Chosen by each client here; a campaign would fix both.
            local_steps=manifest.local_steps,
            charge_event=None if manifest.charge is None else manifest.charge.event,
            max_payload_bytes=n_bytes,
            gate_suite_sha256=_NO_GATE.suite_sha256,
        )
        verify_manifest(manifest, expected)
        if manifest.site in self._updates:
            raise UpdateRejected(
                "round", f"client {manifest.site!r} has sent an update in round {self.round}"
            )
        verify_payload(payload, manifest)
        tensors = decode_tensors(payload, limits=PayloadLimits(max_bytes=n_bytes))
        verify_tensors(tensors, expected)
        self._updates[manifest.site] = Member(site=manifest.site, tensors=tensors)

    def admit(self, name: str, public_key: str) -> None:
        """Remember a client's key at its first upload; another key for the name is ignored.

        Raises:
            UpdateRejected: There are ``num_clients`` clients already.
        """
        if name not in self._keys and len(self._keys) >= self.num_clients:
            raise UpdateRejected(
                "site", f"client {name!r} is one more than num_clients {self.num_clients}"
            )
        self._keys.setdefault(name, public_key)

    def aggregate_updates(self) -> None:
        """Take the mean of this round's updates, every client alike.

        Raises:
            QuorumNotReached: Fewer than ``num_clients`` updates have arrived.
        """
        if len(self._updates) < self.num_clients:
            raise QuorumNotReached(
                f"{len(self._updates)} of {self.num_clients} clients have sent an update in round "
                f"{self.round}; let all of them upload first"
            )
        weights = dict.fromkeys(self._updates, 1.0)
        rule = AGGREGATORS.build(ComponentSpec(kind="mean"))
        cohort = member_order(list(self._updates.values()))
        self._aggregate = rule.aggregate(cohort, weights, None)

    def update_global_model(self) -> None:
        """Add the aggregate to the global model and open the next round.

        Raises:
            QuorumNotReached: ``aggregate_updates`` has not been called in this round.
        """
        if self._aggregate is None:
            raise QuorumNotReached(
                f"round {self.round} has no aggregate; call aggregate_updates first"
            )
        with torch.no_grad():
            for name, parameter in _trained(self.model).items():
                parameter.add_(torch.from_numpy(self._aggregate.tensors[name]))
        self._updates, self._aggregate = {}, None
        self.round += 1


class FedClient:
    """Trains a copy of a model on examples that stay here.

    Args:
        model: Any torch module; the client works on a copy.
        dataset: Examples, each a mapping of tensors with ``labels``; all of the same shapes.
        privacy: RecordDp for every example, against everybody who sees an update. Left out there
            is no privacy, and a notice says so. Dropout is off while it holds, and a model with
            trained tensors that are not linear layers is refused by name.
        options: How to train.

    Raises:
        CampaignError: With privacy, a seed or a unit other than the example; or a bad dataset.
        TrainingError: With two clip norms, no trained tensor is called ``head.*``, or all are.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Sequence[Mapping[str, Tensor]],
        *,
        privacy: RecordDp | None = None,
        options: ClientOptions | None = None,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.privacy = privacy
        self.options = options or ClientOptions()
        self._columns = columns_of_examples(dataset)
        self._key = generate_key()
        self.name = f"client-{public_hex(self._key)[:16]}"
        self._events: list[EventRecord] = []
        self._steps = 0
        self._n_settled = 0
        self._start = _tensors_of(self.model)
        self._start_sha256 = tensors_sha256(self.model)
        self._round = 1
        self._clip_norm: float | None = None
        if privacy is None:
            warnings.warn(
                "no privacy= was given: updates of this client can reveal its examples",
                stacklevel=2,
            )
        else:
            self._require_kept(privacy)

    @property
    def epsilon(self) -> float:
        """Epsilon spent so far at the guarantee's delta; infinite without one."""
        if self.privacy is None:
            return math.inf
        return accounted_epsilon(self._events, delta=self.privacy.delta)

    def train(self, num_epochs: int) -> None:
        """Train on the client's examples.

        Under RecordDp an epoch is ``round(1 / sampling_rate)`` Poisson steps, a public number; the
        steps are charged before the first of them.

        Raises:
            BudgetExhausted: The steps would pass the guarantee's epsilon; nothing was trained.
            TrainingError: A trained tensor is not covered by per-row clipping.
            LossNotFinite: Without privacy only.
        """
        options = self.options
        rate = self.privacy.sampling_rate if self.privacy else None
        n_rows = len(self._columns)
        per_epoch = round(1 / rate) if rate else math.ceil(n_rows / options.batch_size)
        training = TrainingSpec(
            local_steps=num_epochs * per_epoch,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            optimizer=options.optimizer,
            micro_batch=options.micro_batch
            if rate
            else min(options.batch_size, _LARGEST_MICRO_BATCH),
        )
        noise = self._charged_plan(training.local_steps)
        # Dropout and batch statistics would let more than one row into a gradient.
        self.model.train(mode=noise is None)
        taken = run_steps(
            self._trainee(),
            self._columns,
            training=training,
            divisor=float(options.batch_size),
            noise=noise,
            stream=SecureStream() if options.seed is None else SeededStream(options.seed),
            probe=public_probe(self._columns),
            clip_norm=self._clip_norm,
        )
        if taken is not None:
            self._clip_norm = taken.clip_norm
        self.model.eval()
        self._steps += training.local_steps

    def upload_model_update(self, server: FedServer) -> None:
        """Sign what training changed since the last download, and send it.

        Raises:
            TrainingError: There was no training since the last download.
            UpdateRejected: The server refuses the update, for instance because this client did
                not download the latest global model.
        """
        if self._steps == 0:
            raise TrainingError(f"client {self.name!r} has nothing to send; call train first")
        now = _tensors_of(self.model)
        delta = {name: tensor - self._start[name] for name, tensor in now.items()}
        payload = encode_tensors(delta)
        manifest = UpdateManifest(
            campaign_digest=layout_sha256(self.model),
            round=self._round,
            site=self.name,
            base_hash=self._start_sha256,
            payload_sha256=sha256_hex(payload),
            payload_bytes=len(payload),
            codec=_CODEC,
            shapes=shapes_of(delta),
            local_steps=self._steps,
            charge=self._charge(),
            gate=_NO_GATE,
            code_version=version("fedloom"),
        )
        server.admit(self.name, public_hex(self._key))
        server.receive(sign(manifest, self._key), payload)

    def download_global_model(self, server: FedServer) -> None:
        """Go on from the server's global model."""
        tensors = server.global_tensors
        with torch.no_grad():
            for name, parameter in _trained(self.model).items():
                parameter.copy_(torch.from_numpy(tensors[name]))
        self._start = _tensors_of(self.model)
        self._start_sha256 = tensors_sha256(self.model)
        self._steps, self._round = 0, server.round
        self._n_settled = len(self._events)

    def _trainee(self) -> Trainee:
        return Trainee(self.model, _trained(self.model), self.options.losses)

    def _require_kept(self, privacy: RecordDp) -> None:
        if self.options.seed is not None:
            raise CampaignError("a seed makes noise predictable; leave it out with privacy=")
        if privacy.unit != ROW:
            raise CampaignError(
                f"privacy.unit is {privacy.unit!r}, and examples here name no such unit, so each "
                'would be protected by itself; use unit = "row", or run a campaign'
            )
        require_groups(self._trainee(), privacy.clip_norm)

    def _charged_plan(self, steps: int) -> NoisePlan | None:
        if self.privacy is None:
            return None
        mechanism = MECHANISMS.build(ComponentSpec(kind=self.privacy.mechanism))
        dimension = sum(parameter.numel() for parameter in _trained(self.model).values())
        setting = NoiseSetting(steps=steps, sites=1, dimension=dimension)
        plan = mechanism.plan(self.privacy, setting)
        after = accounted_epsilon([*self._events, plan.event], delta=self.privacy.delta)
        if after > self.privacy.epsilon:
            raise BudgetExhausted(
                f"{steps} more steps would bring epsilon to {after:.2f}, the limit is "
                f"{self.privacy.epsilon:.2f} at delta {self.privacy.delta:g}; "
                f"{self.epsilon:.2f} is spent"
            )
        self._events.append(plan.event)
        return plan

    def _charge(self) -> Charge | None:
        if self.privacy is None:
            return None
        fresh = tuple(self._events[self._n_settled :])
        event = fresh[0] if len(fresh) == 1 else ComposedEvent(events=fresh)
        return Charge(event=event, ledger_seq=len(self._events))


def layout_sha256(model: nn.Module) -> str:
    """Return the hash of names and shapes of the trained tensors: what clients must agree on."""
    lines = [f"{name} {tuple(p.shape)}" for name, p in sorted(_trained(model).items())]
    return sha256_hex("\n".join(lines).encode())


def tensors_sha256(model: nn.Module) -> str:
    """Return the hash of the trained tensors' values."""
    return sha256_hex(encode_tensors(_tensors_of(model)))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _tensors_of(model: nn.Module) -> dict[str, Array]:
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in sorted(_trained(model).items())
    }
