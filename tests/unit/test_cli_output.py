"""People read stderr, programs read stdout, and an error is shown once."""

import json

import pytest
import typer

from fl_core.errors import (
    BudgetExhausted,
    CampaignError,
    DataGateFailed,
    FedloomError,
    IncompatibleParts,
    LedgerCorrupt,
    ModelMismatch,
    PolicyRefused,
    PortInUse,
    ServerFailed,
    StoreUnavailable,
)
from flows.cli import output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CampaignError("x"), 2),
        (IncompatibleParts("x"), 2),
        (DataGateFailed(("x",), "x"), 2),
        (ModelMismatch("x"), 2),
        (PolicyRefused("x"), 2),
        (PortInUse("x"), 2),
        (StoreUnavailable("x"), 2),
        (ServerFailed("x"), 1),
        (BudgetExhausted("x"), 1),
        (LedgerCorrupt("x"), 1),
        (FedloomError("x"), 1),
    ],
    ids=lambda value: getattr(value, "code", None),
)
def test_exit_code_tells_bad_input_from_failure(error, code):
    assert output.exit_code(error) == code


def test_error_goes_to_stderr_with_its_hint_and_as_written(capsys):
    error = CampaignError("field sites[0] is [bold], expected a name", hint="write a name")

    with pytest.raises(typer.Exit) as exit_:
        output.fail(error)

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: field sites[0] is [bold], expected a name\nhint: write a name\n"
    assert exit_.value.exit_code == 2


def test_document_is_one_json_value_on_stdout(capsys):
    output.print_json({"site": "nörd", "epsilon": 7.93})

    out, err = capsys.readouterr()
    assert json.loads(out) == {"site": "nörd", "epsilon": 7.93}
    assert err == ""


def test_number_that_json_cannot_hold_is_refused(capsys):
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.print_json({"epsilon": float("inf")})
    assert capsys.readouterr().out == ""


def test_progress_is_shown_on_stderr_only(capsys):
    with output.progress(counts=True) as display:
        display.add_task("rounds", total=3)

    assert capsys.readouterr().out == ""
