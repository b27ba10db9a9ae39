"""What a person should read before a run: settings that are allowed and likely a mistake."""

from typing import TYPE_CHECKING

from rich.text import Text

from flows.cli.output import console_err

if TYPE_CHECKING:
    from fl_core.campaign.campaign import Campaign


def show_warnings(campaign: "Campaign") -> list[dict[str, str]]:
    """Print a campaign's warnings, a line each, and return them as plain values; never refuses."""
    from fl_core.privacy.warnings import campaign_warnings

    found = campaign_warnings(campaign)
    for warning in found:
        console_err.print(Text(f"warning: {warning.line}", style="yellow"))
    return [warning.model_dump(mode="json") for warning in found]
