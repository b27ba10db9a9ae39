"""`fedloom init`, `check`, `run`, `status`: a campaign from its file to its rounds.

What can be known to be wrong with a campaign is said before a run starts, with exit code 2. The
run itself is only watched from here, and goes on if the command is ended.
"""

import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import CampaignError, FedloomError, ServerFailed
from flows.cli import views
from flows.cli.cautions import show_warnings
from flows.cli.context import HomeOption, JsonOption, use_coordinator
from flows.cli.output import console_err, print_json, progress

if TYPE_CHECKING:
    from fl_core.campaign.campaign import Campaign
    from fl_core.rounds.status import CampaignStatus

POLL_S = 0.5
PATIENCE_S = 300.0

CampaignArgument = Annotated[Path, typer.Argument(help="Campaign file, TOML or YAML.")]


def init(
    file: Annotated[Path, typer.Argument(help="File to write.")] = Path("campaign.toml"),
    campaign_id: Annotated[str, typer.Option("--id", help="Id of the campaign.")] = "my-campaign",
    json_output: JsonOption = False,
) -> None:
    """Write a commented campaign to start from.

    Example: `fedloom init my-first.toml --id my-first`
    """
    from fl_core.campaign.loading import parse_campaign
    from flows.cli.templates import CAMPAIGN

    text = CAMPAIGN.format(file=file, id=campaign_id)
    parse_campaign(text, source=str(file))
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise CampaignError(f"{file}: exists, nothing was written", hint="name another") from error
    except OSError as error:
        raise CampaignError(f"{file}: cannot be written: {error.strerror}") from error
    console_err.print(f"{file} is written; next: fedloom check {file}")
    if json_output:
        print_json({"file": str(file), "id": campaign_id})


def check(
    file: CampaignArgument,
    lock: Annotated[
        bool, typer.Option("--lock", help="Resolve names to hashes; write FILE.lock.json.")
    ] = False,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Validate a campaign and show the epsilon after every round; nothing runs.

    Example: `fedloom check my-first.toml --lock`
    """
    from fl_core.assembly import build_parts
    from fl_core.campaign.loading import read_campaign
    from fl_core.privacy.forecast import client_schedule, schedule, with_noise

    campaign = with_noise(read_campaign(file))
    build_parts(campaign)
    epsilons, client_epsilons = schedule(campaign), client_schedule(campaign)
    record, client = campaign.privacy.record, campaign.privacy.client
    document: dict[str, Any] = {
        "id": campaign.id,
        "sites": list(campaign.sites),
        "max_rounds": campaign.max_rounds,
        "upload_after_s": campaign.cohort.upload_after_s,
        "unit": None if record is None else record.unit,
        "max_rows_per_unit": None if record is None else record.max_rows_per_unit,
        "noise_multiplier": None if record is None else record.noise_multiplier,
        "epsilon_after_round": epsilons,
        "client_noise_multiplier": None if client is None else client.noise_multiplier,
        "client_epsilon_after_round": client_epsilons,
    }
    console_err.print(views.schedule_table(campaign, epsilons, client_epsilons))
    if lock:
        campaign = _locked(campaign, home=home)
        document |= _written(file, campaign)
    document["warnings"] = show_warnings(campaign)
    if json_output:
        print_json(document)


def _locked(campaign: "Campaign", *, home: Path) -> "Campaign":
    from tasks.locking import lock_campaign, shelves_of
    from tasks.settings import read_folders

    folders = read_folders()
    if folders.holdouts is None and (home / "holdouts").is_dir():
        folders = folders.model_copy(update={"holdouts": home / "holdouts"})
    with progress() as bar:
        bar.add_task("resolving names (loads the base model once)")
        return lock_campaign(campaign, shelves_of(folders))


def _written(file: Path, locked: "Campaign") -> dict[str, Any]:
    from fl_core.artifacts.documents import to_bytes

    target = file.with_suffix(".lock.json")
    target.write_bytes(to_bytes(locked))
    console_err.print(f"{target} is written; digest {locked.digest}")
    return {"digest": locked.digest, "locked": str(target)}


def run(  # noqa: PLR0913, PLR0917  the options of a command
    file: Annotated[
        str, typer.Argument(help="Campaign file to start, or the id of one to resume.")
    ],
    rounds: Annotated[int, typer.Option(min=0, help="Rounds in this run; 0 is all.")] = 0,
    quorum: Annotated[
        int, typer.Option(min=0, help="Updates a round needs, if more than the campaign's.")
    ] = 0,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds for the rest after the quorum; 0: campaign's.")
    ] = 0.0,
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Start a campaign, or resume it; running it again never repeats a round.

    Example: `fedloom run my-first.toml`
    """
    from fl_core.campaign.loading import read_campaign
    from fl_core.rounds.documents import RoundChoice
    from fl_core.rounds.plan import require_choice_fits

    parameters: dict[str, str | float] = {"rounds": rounds, "quorum": quorum, "grace_s": grace_s}
    path = Path(file)
    # An id has neither a dot nor a slash, so whatever has one is meant as a file.
    if path.is_file() or not {".", "/"}.isdisjoint(file):
        campaign = read_campaign(path)
        parameters["campaign"] = path.read_text(encoding="utf-8")
        campaign_id = campaign.id
    else:
        parameters["campaign_id"] = campaign_id = file
    use_coordinator(home)
    require_fit_store()
    if "campaign" in parameters:
        frozen = require_startable(str(parameters["campaign"]))
    else:
        frozen = require_campaign(campaign_id)
    require_choice_fits(frozen, RoundChoice(quorum=quorum or None, grace_s=grace_s or None))
    warnings = show_warnings(frozen)
    ended = follow(campaign_id, parameters)
    if json_output:
        print_json(ended.model_dump(mode="json") | {"warnings": warnings})


def require_fit_store() -> None:
    """Probe the store before anything runs: it answers, and never overwrites.

    Raises:
        StoreUnavailable: It does not, with what to do.
    """
    from tasks.object_store import require_write_once
    from tasks.settings import open_store, read_settings

    require_write_once(open_store(read_settings()))


def require_campaign(campaign_id: str) -> "Campaign":
    """Return the campaign to resume, before anything runs.

    Raises:
        CampaignError: No campaign of that id is frozen in the store.
        PolicyRefused: The noise is the coordinator's, and it keeps no ledger that can be charged.
    """
    from fl_core.rounds.plan import read_assembly
    from tasks.federation import open_coordinator
    from tasks.settings import open_store, read_settings

    settings = read_settings()
    store = open_store(settings)
    assembly = read_assembly(store, campaign_id)
    open_coordinator(assembly, settings, store)
    return assembly.campaign


def require_startable(text: str) -> "Campaign":
    """Return what the evaluation worker makes of a campaign's text, before anything runs.

    Raises:
        CampaignError: A name stands for nothing there, or the id is taken by another campaign.
        PolicyRefused: The noise is the coordinator's, and it keeps no ledger that can be charged.
    """
    from fl_core.assembly import assemble
    from fl_core.rounds.plan import require_free_id
    from tasks.federation import open_coordinator
    from tasks.settings import open_store, read_settings

    settings = read_settings()
    store = open_store(settings)
    with progress() as bar:
        bar.add_task("locking the campaign: names become hashes")
        locked = locked_by_worker(text)
        require_free_id(store, locked)
        open_coordinator(assemble(locked), settings, store)
    return locked


def locked_by_worker(text: str) -> "Campaign":
    """Have a campaign's text locked by the evaluation worker and return what it locked.

    Raises:
        CampaignError: The text is no campaign, or names what is not there.
        FedloomError: The worker did not answer in time.
    """
    from fl_core.artifacts.documents import sha256_hex
    from flows import dispatch
    from tasks.lock_step import put_text, read_locked
    from tasks.settings import open_store, read_settings

    store, text_sha256 = open_store(read_settings()), sha256_hex(text.encode())
    put_text(store, text, text_sha256)
    attempt = f"command-{uuid.uuid4().hex[:12]}"
    dispatch.have_locked(text_sha256, attempt=attempt)
    return read_locked(store, text_sha256, attempt)


def follow(campaign_id: str, parameters: Mapping[str, str | float]) -> "CampaignStatus":
    """Start a campaign run, show its rounds until it ends, and return the final status.

    Raises:
        FedloomError: The run failed; the text says where to read why.
    """
    from flows import dispatch

    run_id = dispatch.start_campaign(parameters)
    state, heard_at = dispatch.run_state(run_id), time.monotonic()
    reader = _status_reader(campaign_id)
    with views.LiveRounds(campaign_id) as live:
        while not state.is_final:
            time.sleep(POLL_S)
            live.update(reader.read())
            try:
                state, heard_at = dispatch.run_state(run_id), time.monotonic()
            except ServerFailed:
                # The run goes on without the server; so does whoever watches, for a while.
                if time.monotonic() - heard_at > PATIENCE_S:
                    raise
    status = reader.read()
    if state.state_type != "COMPLETED" or status is None:
        raise FedloomError(
            f"campaign run {run_id} ended {state.state_type.lower()}: {state.message}",
            hint=f"its page in Prefect shows why; `fedloom run {campaign_id}` goes on",
        )
    console_err.print(views.rounds_table(status))
    console_err.print(views.budgets_table(status))
    return status


def _status_reader(campaign_id: str) -> views.StatusReader:
    from tasks.federation import known_federation
    from tasks.settings import open_store, read_settings

    settings = read_settings()
    store = open_store(settings)
    find = partial(known_federation, settings=settings, store=store)
    return views.StatusReader(store, campaign_id, federation=find)


def status(
    campaign_id: Annotated[str, typer.Argument(help="Id of a campaign; all if left out.")] = "",
    home: HomeOption = Path(".fedloom"),
    json_output: JsonOption = False,
) -> None:
    """Show where a campaign stands, read from the store alone.

    Example: `fedloom status my-first`
    """
    from tasks.settings import open_store, read_settings

    use_coordinator(home, needed=("s3",))
    store = open_store(read_settings())
    if not campaign_id:
        found = views.campaign_ids(store)
        console_err.print("\n".join(found) or "no campaign yet; `fedloom init` writes one")
        if json_output:
            print_json({"campaigns": found})
        return
    current = _status_reader(campaign_id).read()
    if current is None:
        raise CampaignError(f"no campaign {campaign_id!r} in the store")
    console_err.print(views.rounds_table(current))
    console_err.print(views.budgets_table(current))
    if json_output:
        print_json(current.model_dump(mode="json"))
