"""Every error that fedloom raises on purpose.

One class per decision a caller can make. ``retryable`` is the only thing a retry may look at;
``code`` is stable and may leave a machine; the text may not leave a site.

    FedloomError
    ├─ CampaignError            the campaign, or a file beside it, cannot be used as written
    │  ├─ UnknownComponent      a part that no registry holds
    │  └─ IncompatibleParts     parts that cannot keep their promise together
    ├─ PrivacyError
    │  ├─ BudgetExhausted       the next charge would pass the site's limit
    │  ├─ PolicyRefused         the site's own policy does not allow what is asked
    │  ├─ UnboundedSensitivity  noise was asked for a quantity without a finite bound
    │  ├─ LedgerConflict        another process appended first (retryable)
    │  ├─ LedgerCorrupt         the chain, a signature or the order of a ledger does not hold
    │  └─ WitnessUnavailable    no witness outside the coordinator has the ledger's head (retryable)
    ├─ UpdateRejected           ``reason`` says which check an update failed
    ├─ DataGateFailed           a set rule of the gate broke; names of rules only
    ├─ TrainingError
    │  ├─ LossNotFinite         NoPrivacy only; under DP nothing data dependent fails outwardly
    │  ├─ AdapterMismatch       an adapter does not fit, or does not reload as trained
    │  └─ ModelMismatch         a base model is absent, or is not the one that was frozen
    ├─ RoundError
    │  ├─ QuorumNotReached      too few sites answered by the deadline (retryable)
    │  ├─ RoundClosed           the round has an outcome already
    │  └─ RunCancelled          a person cancelled the run; its round stays open (retryable)
    ├─ StoreError
    │  ├─ ObjectMissing         no object under that key
    │  ├─ ObjectCorrupt         an object is not what its key or hash promises
    │  └─ StoreUnavailable      the store does not answer, or is not fit for write-once (retryable)
    └─ ServerFailed             a server of the local stack did not start, or is not there
       └─ PortInUse             its port has another listener
"""

from typing import ClassVar, Literal


class FedloomError(Exception):
    """Base of all errors of fedloom.

    Attributes:
        code: Stable string; may be shown anywhere.
        retryable: Whether trying the same again later can succeed.
        hint: What to do, or an empty string.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CampaignError(FedloomError):
    """A campaign, or a file it names, cannot be used as written."""

    code = "campaign"


class UnknownComponent(CampaignError):
    """No registry holds a part of that kind."""

    code = "unknown_component"


class IncompatibleParts(CampaignError):
    """Parts that cannot keep the campaign's promise together."""

    code = "incompatible_parts"


class PrivacyError(FedloomError):
    """A privacy rule stands in the way."""

    code = "privacy"


class BudgetExhausted(PrivacyError):
    """The next charge would pass the limit of the site's policy."""

    code = "budget_exhausted"


class PolicyRefused(PrivacyError):
    """The site's own policy does not allow what is asked."""

    code = "policy_refused"


class UnboundedSensitivity(PrivacyError):
    """Noise was asked for a quantity without a finite bound."""

    code = "unbounded_sensitivity"


class LedgerConflict(PrivacyError):
    """Another process appended to the ledger first."""

    code = "ledger_conflict"
    retryable = True


class LedgerCorrupt(PrivacyError):
    """The chain, a signature or the order of a ledger does not hold."""

    code = "ledger_corrupt"


class WitnessUnavailable(PrivacyError):
    """No witness that the coordinator does not run has the head of a ledger."""

    code = "witness_unavailable"
    retryable = True


RejectReason = Literal[
    "signature",
    "campaign",
    "round",
    "base",
    "site",
    "payload",
    "shape",
    "not_finite",
    "norm",
    "too_large",
    "charge",
]


class UpdateRejected(FedloomError):
    """An update failed a check of the coordinator.

    Attributes:
        reason: Which check, one of ``RejectReason``.
    """

    code = "update_rejected"

    def __init__(self, reason: RejectReason, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason: RejectReason = reason


class DataGateFailed(FedloomError):
    """A set rule of the gate broke.

    Attributes:
        failed: Names of the broken rules, never values of rows.
    """

    code = "data_gate_failed"

    def __init__(self, failed: tuple[str, ...], message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.failed = failed


class TrainingError(FedloomError):
    """Local training, or a part it needs, failed."""

    code = "training"


class LossNotFinite(TrainingError):
    """The loss is inf or NaN; raised under NoPrivacy only."""

    code = "loss_not_finite"


class AdapterMismatch(TrainingError):
    """An adapter does not fit the model, or does not reload as it was trained."""

    code = "adapter_mismatch"


class ModelMismatch(TrainingError):
    """A base model is absent, or is not the one that was frozen."""

    code = "model_mismatch"


class RoundError(FedloomError):
    """A round cannot go on."""

    code = "round"


class QuorumNotReached(RoundError):
    """Too few sites answered by the deadline."""

    code = "quorum_not_reached"
    retryable = True


class RoundClosed(RoundError):
    """The round has an outcome already."""

    code = "round_closed"


class RunCancelled(RoundError):
    """A person cancelled the run; its round stays open, and another run finishes it."""

    code = "run_cancelled"
    retryable = True


class StoreError(FedloomError):
    """The object store cannot do what is asked."""

    code = "store"


class ObjectMissing(StoreError):
    """No object under that key."""

    code = "object_missing"


class ObjectCorrupt(StoreError):
    """An object is not what its key or hash promises."""

    code = "object_corrupt"


class StoreUnavailable(StoreError):
    """The store does not answer, or is not fit for write-once."""

    code = "store_unavailable"
    retryable = True


class ServerFailed(FedloomError):
    """A server of the local stack did not start, did not become healthy, or is not there."""

    code = "server_failed"


class PortInUse(ServerFailed):
    """A port that a server needs has another listener."""

    code = "port_in_use"
