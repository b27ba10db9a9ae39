"""A site's work on its own rows: the gate's verdict, and training with a reload check.

The same object serves a real site and a simulated one; only where rows, verdict and noise stream
come from differs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fl_core.adapters.peft_layout import from_files, to_files
from fl_core.campaign.campaign import Campaign
from fl_core.data.prompts import EncodedRows
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import AdaptedModel, load_state, open_for_round
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.local_training import train_locally, verify_reload
from fl_core.updates.records import GateReport
from fl_core.updates.work import Exchange, Trained


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Work of one site with a model in memory.

    Attributes:
        campaign: The pinned campaign.
        site: Name of the site; chooses its public divisor.
        noise: Noise plan built from the campaign; None under NoPrivacy.
        base: The base model.
        model: The base with an adapter; its state is overwritten by every training.
        verdict: Returns the cached verdict on the rows.
        rows: Returns the rows that passed, encoded.
        stream: Returns a fresh noise stream; called once per training.
    """

    campaign: Campaign
    site: str
    noise: NoisePlan | None
    base: LoadedBase
    model: AdaptedModel
    verdict: Callable[[], GateReport]
    rows: Callable[[], EncodedRows]
    stream: Callable[[], NoiseStream]

    def gate(self) -> GateReport:
        """Return the verdict on the site's rows."""
        return self.verdict()

    def train(self, exchange: Exchange) -> Trained:
        """Train from the exchange's base adapter.

        Raises:
            AdapterMismatch: The files do not fit, or the trained adapter does not reload as it is.
            LossNotFinite: Under NoPrivacy only.
        """
        spec, task = self.campaign.adapter, self.campaign.task
        before = from_files(exchange.base, spec=spec, task=task)
        open_for_round(self.model, exchange.round_number)
        load_state(self.model, before)
        delta = train_locally(
            self.model,
            self.rows(),
            training=self.campaign.training,
            divisor=self.campaign.training.divisor(self.site),
            noise=self.noise,
            stream=self.stream(),
        )
        after = before.plus(delta)
        load_state(self.model, after)
        files = to_files(after, spec=spec, task=task, base_name=self.campaign.base_model.name)
        verify_reload(self.model, files, base=self.base, spec=spec, task=task)
        return Trained(delta=delta)
