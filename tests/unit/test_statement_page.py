"""The page for a data-protection officer: complete, self-contained, and never markup of others."""

import re
from html.parser import HTMLParser

import pytest
from worlds import campaign_of

from fl_core.privacy.planning import plan_campaign
from fl_core.privacy.statement import privacy_statement
from tasks.plan_figure import draw_plan
from tasks.statement_page import to_html

CLIENT = {
    "epsilon": 20.0,
    "delta": 1e-5,
    "clip_norm": 0.5,
    "noise_multiplier": 1.0,
    "mechanism": "gaussian",
}


class Tags(HTMLParser):
    """Every element and attribute of a page, and whether all that is opened is closed."""

    VOID = frozenset({"meta", "br", "hr"})

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.open = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(campaign, **facts):
    return to_html(privacy_statement(campaign, budgets={}, round_number=2, **facts))


def test_page_says_the_answer_large_and_everything_else_below():
    page = page_of(campaign_of())

    assert "<h1>Privacy of tiny, version of round 2</h1>" in page
    # 16 steps at noise 0.8, rate 0.1, delta 1e-5, by PLD.
    assert '<div class="value">5.26</div>' in page or '<div class="value">5.27</div>' in page
    for title in ("How it is kept", "Against whom", "Everything that leaves a site", "Not covered"):
        assert f"<h2>{title}</h2>" in page
    assert "<table>" in page


def test_page_is_well_formed_and_loads_and_runs_nothing():
    page = page_of(campaign_of())

    tags = Tags(page)

    assert tags.open == []
    assert not tags.names & {"script", "img", "link", "iframe", "a", "form", "object"}
    assert not tags.attributes & {"src", "href", "onclick", "onload"}
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import", page)


@pytest.mark.parametrize(
    "reason",
    [
        "<script>alert(document.cookie)</script> nothing to protect",
        "![x](http://tracker.example/pixel.png) nothing to protect",
        "[open](javascript:alert(1)) nothing to protect",
        '"><img src=x onerror=alert(1)> nothing to protect',
        "<https://tracker.example> nothing to protect at all",
    ],
    ids=["script", "picture", "link", "attribute", "autolink"],
)
def test_what_people_wrote_into_a_campaign_is_text_and_never_markup(reason):
    page = page_of(campaign_of(privacy={"none": {"reason": reason}}))

    tags = Tags(page)

    assert not tags.names & {"script", "img", "a"}
    assert "nothing to protect" in page


def test_two_promises_have_a_card_each():
    record = campaign_of().privacy.record.model_dump(exclude_none=True)

    page = page_of(campaign_of(privacy={"record": record, "client": CLIENT}))

    assert "epsilon, one row of a site" in page
    assert "epsilon, a site as a whole" in page


PNG = b"\x89PNG\r\n\x1a\n"


def size_of(png):
    # PNG specification, section 11.2.2: width and height are the first fields of IHDR.
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_plan_is_drawn_as_a_png_one_panel_per_level():
    record = campaign_of().privacy.record.model_dump(exclude_none=True)
    both = campaign_of(privacy={"record": record, "client": CLIENT})

    one = draw_plan(plan_campaign(campaign_of(), stated={}, rounds=range(1, 7)))
    two = draw_plan(plan_campaign(both, stated={}, rounds=range(1, 7)))

    assert one.startswith(PNG)
    assert two.startswith(PNG)
    assert size_of(two)[0] == size_of(one)[0]
    assert size_of(two)[1] == 2 * size_of(one)[1]


def test_plan_without_guarantee_is_drawn_and_says_so():
    campaign = campaign_of(privacy={"none": {"reason": "made-up numbers, nothing to protect"}})

    assert draw_plan(plan_campaign(campaign, stated={}, rounds=range(1, 3))).startswith(PNG)


def test_same_plan_is_the_same_picture():
    plan = plan_campaign(campaign_of(), stated={}, rounds=range(1, 4))

    assert draw_plan(plan) == draw_plan(plan)
