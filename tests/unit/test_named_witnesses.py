"""Two witnesses are two, and the site's own is not the coordinator's (SOUNDNESS, rule 14)."""

from pathlib import Path

import pytest

from fl_core.errors import CampaignError, PolicyRefused
from fl_core.privacy.policy import parse_policy
from fl_core.privacy.policy_documents import CoordinatorWitness, FolderWitness, S3Witness
from fl_core.privacy.witness import require_enough_witnesses
from tasks.settings import Settings
from tasks.witnesses import Surroundings, is_elsewhere, open_witnesses, prepare_witnesses

POLICY = """
dataset = "d"
epsilon = 8.0
delta = 1e-5
base_models = "*"
suites = "*"
"""
COORDINATOR = '[[witness]]\nkind = "coordinator"\n'
SERVER = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    "witness",
    [COORDINATOR, '[[witness]]\nkind = "folder"\npath = "/mnt/w"\n'],
    ids=["coordinator", "folder"],
)
def test_witness_that_is_named_twice_is_refused(witness):
    parse_policy(POLICY + witness, source="policy.toml")

    with pytest.raises(CampaignError, match="named twice"):
        parse_policy(POLICY + witness + witness, source="policy.toml")


@pytest.mark.parametrize(
    ("witness", "elsewhere"),
    [
        (S3Witness(bucket="fedloom", endpoint=SERVER), False),
        (S3Witness(bucket="fedloom", prefix="copies", endpoint=f"{SERVER}/"), False),
        (S3Witness(bucket="peer", endpoint=SERVER), True),
        (S3Witness(bucket="fedloom", endpoint="http://peer:9000"), True),
        (FolderWitness(path=Path("w")), True),
        (CoordinatorWitness(), False),
    ],
)
def test_bucket_of_the_campaigns_is_no_witness_of_the_sites_own(tmp_path, witness, elsewhere):
    campaigns = Settings(store_url="s3://fedloom/part", s3_endpoint=SERVER)

    assert is_elsewhere(witness, Surroundings(tmp_path, campaigns)) is elsewhere


def test_folder_of_the_campaigns_is_no_witness_of_the_sites_own(tmp_path):
    store, root = tmp_path / "store", tmp_path / "site"
    around = Surroundings(root, Settings(store_url=store.as_uri()))
    witness = '[[witness]]\nkind = "folder"\npath = "../store/copies"\n'
    policy = parse_policy(POLICY + COORDINATOR + witness, source="policy.toml")

    opened = open_witnesses(policy, around)

    assert [each.is_own for each in opened] == [False, False]
    with pytest.raises(PolicyRefused, match="0 of them"):
        require_enough_witnesses([each.is_own for each in opened])
    root.mkdir()
    (_, folder) = prepare_witnesses(policy, around, site="a")
    assert (folder.is_own, "which the coordinator runs" in folder.complaint) == (False, True)
