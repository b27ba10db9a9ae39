"""What `fedloom audit` says of a report that is shown and not kept."""

from flows.cli.audit_views import unkept


def test_report_of_a_campaign_that_has_not_started_says_what_would_keep_one():
    assert "`fedloom audit first` keeps a report" in unkept("first", is_store_there=True)


def test_report_without_a_store_does_not_speak_of_the_campaign():
    said = unkept("first", is_store_there=False)

    assert "no store is reached" in said
    assert "first" not in said
