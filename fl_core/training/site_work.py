"""A site's work on its own rows: the gate's verdict, and training with a reload check.

The same object serves a real site and a simulated one; only where rows, verdict and noise stream
come from differs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fl_core.adapters.peft_layout import from_files, to_files
from fl_core.artifacts.documents import from_bytes, to_bytes
from fl_core.campaign.campaign import Campaign
from fl_core.data.prompts import EncodedRows
from fl_core.data.units import require_units
from fl_core.models.loading import LoadedBase
from fl_core.models.peft_state import AdaptedModel, load_state, open_for_round
from fl_core.privacy.mechanism import NoisePlan
from fl_core.privacy.randomness import NoiseStream
from fl_core.training.local_training import LocalSetting, train_round, verify_reload
from fl_core.training.moving_clip import ClipState
from fl_core.training.steps import StepsTaken
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
        setting = self._setting(exchange)
        rows = require_units(self.rows(), self.campaign)
        local = train_round(self.model, rows, setting=setting, stream=self.stream())
        after = before.plus(local.delta)
        load_state(self.model, after)
        files = to_files(after, spec=spec, task=task, base_name=self.campaign.base_model.name)
        verify_reload(self.model, files, base=self.base, spec=spec, task=task)
        if local.steps is None:
            return Trained(delta=local.delta)
        return Trained(
            delta=local.delta,
            state=self._state(exchange, local.steps),
            read_out=local.steps.watch.read_out(exchange.round_number),
        )

    def _setting(self, exchange: Exchange) -> LocalSetting:
        record = self.campaign.privacy.record
        clip_norm = None
        if exchange.state is not None:
            what = "the clip norm that the last round left"
            clip_norm = from_bytes(ClipState, exchange.state, what=what).clip_norm
        return LocalSetting(
            training=self.campaign.training,
            divisor=self.campaign.training.divisor(self.site),
            noise=self.noise,
            max_rows_per_unit=1 if record is None else record.max_rows_per_unit,
            clip_norm=clip_norm,
        )

    def _state(self, exchange: Exchange, steps: StepsTaken) -> bytes | None:
        if self.noise is None or self.noise.adaptive_clip is None:
            return None
        return to_bytes(ClipState(round=exchange.round_number, clip_norm=steps.clip_norm))
