"""Rows to token arrays, with a tokenizer of whole words in place of a real one."""

from contextlib import nullcontext

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fl_core.campaign.specs import TaskSpec
from fl_core.data.prompts import IGNORED, encode_rows, require_usable, usable_rows
from fl_core.data.rows import rows_of
from fl_core.errors import CampaignError, ModelMismatch

CLASSES = TaskSpec(labels=("Engine", "Bucket"), max_tokens=5)
ANSWERS = TaskSpec(kind="causal_lm", text="prompt", target="answer", max_tokens=8)


class WordTokenizer:
    """One token per word: its length plus 100; [CLS] 1 and [SEP] 2 where asked; end 9, pad 7."""

    def __init__(self, *, chat=False, eos=9, bos=None, pad=7):
        self.chat_template = "yes" if chat else None
        self.eos_token_id, self.bos_token_id, self.pad_token_id = eos, bos, pad

    def __call__(self, text, *, truncation=False, max_length=None, add_special_tokens=True):
        lists = [[100 + len(word) for word in one.split()] for one in text]
        if add_special_tokens:
            cut = max_length - 2 if truncation else None
            lists = [[1, *ids[:cut], 2] for ids in lists]
        return {"input_ids": lists}

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        return f"<user> {conversation[0]['content']} <bot>"


def classes(texts, labels):
    return rows_of(pd.DataFrame({"text": texts, "label": labels}, dtype=object), "rows.csv")


def answers(prompts, replies):
    return rows_of(pd.DataFrame({"prompt": prompts, "answer": replies}, dtype=object), "a.jsonl")


def test_texts_are_cut_and_padded_on_the_right_to_the_public_length():
    rows = classes(["a bb", "a bb ccc dddd"], ["Bucket", "Engine"])

    encoded = encode_rows(rows, CLASSES, WordTokenizer())

    assert encoded.input_ids.tolist() == [[1, 101, 102, 2, 7], [1, 101, 102, 103, 2]]
    assert encoded.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert encoded.labels.tolist() == [1, 0]
    assert {a.dtype.name for a in (encoded.input_ids, encoded.attention_mask)} == {"int64"}


def test_only_the_answer_and_its_end_are_labelled_in_the_plain_format():
    # Instruction: / a / Answer: are three words in front of the answer.
    encoded = encode_rows(answers(["a"], ["bb ccc"]), ANSWERS, WordTokenizer())

    assert encoded.input_ids.tolist() == [[112, 101, 107, 102, 103, 9, 7, 7]]
    assert encoded.labels.tolist() == [[IGNORED] * 3 + [102, 103, 9] + [IGNORED] * 2]
    assert encoded.attention_mask.tolist() == [[1] * 6 + [0] * 2]


def test_plain_format_begins_with_the_tokenizers_first_token():
    encoded = encode_rows(answers(["a"], ["bb"]), ANSWERS, WordTokenizer(bos=5))

    assert encoded.input_ids[0, :2].tolist() == [5, 112]
    assert encoded.labels[0, 4:6].tolist() == [102, 9]


def test_chat_template_takes_the_place_of_the_plain_format():
    encoded = encode_rows(answers(["a"], ["bb"]), ANSWERS, WordTokenizer(chat=True, bos=5))

    # <user> a <bot> are words of 6, 1 and 5 characters; the template spells its own begin.
    assert encoded.input_ids.tolist() == [[106, 101, 105, 102, 9, 7, 7, 7]]


@pytest.mark.parametrize(
    ("words", "kept"), [(4, True), (5, True), (6, False), (60, False)], ids=str
)
def test_row_whose_prompt_leaves_no_room_for_its_answer_is_left_out(words, kept):
    # Two words of the plain format beside the prompt's; 8 tokens in all.
    rows = answers([" ".join("w" * words), "a"], ["bb", "bb"])

    encoded = encode_rows(rows, ANSWERS, WordTokenizer())

    assert len(encoded) == 1 + kept
    assert (encoded.labels != IGNORED).any(axis=1).all()


def test_cut_answer_has_no_end_token():
    encoded = encode_rows(answers(["a"], ["b b b b b b b b"]), ANSWERS, WordTokenizer())

    assert encoded.input_ids.shape == (1, 8)
    assert 9 not in encoded.labels


BAD = [
    ("", "Engine"),
    ("   ", "Engine"),
    (None, "Engine"),
    ("oil\ud800", "Engine"),
    (180, "Engine"),
    (["oil"], "Engine"),
    ("oil", "180"),
    ("oil", None),
    ("oil", ""),
    ("oil", ["Engine"]),
    ("oil", {"label": "Engine"}),
    ("oil", float("nan")),
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_row_that_cannot_be_encoded_is_left_out_and_changes_no_other(bad):
    good = [("oil leak", "Engine"), ("new tooth", "Bucket")]
    rows = classes(*map(list, zip(good[0], bad, good[1], strict=True)))

    encoded = encode_rows(rows, CLASSES, WordTokenizer())

    alone = encode_rows(classes(*map(list, zip(*good, strict=True))), CLASSES, WordTokenizer())
    assert encoded.input_ids.tolist() == alone.input_ids.tolist()
    assert encoded.labels.tolist() == alone.labels.tolist()
    assert usable_rows(rows, CLASSES).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("rows", "task", "shape"),
    [(classes([], []), CLASSES, (0,)), (answers([], []), ANSWERS, (0, 8))],
    ids=["classes", "answers"],
)
def test_no_rows_give_arrays_of_the_same_width(rows, task, shape):
    encoded = encode_rows(rows, task, WordTokenizer())

    assert encoded.input_ids.shape == (0, task.max_tokens)
    assert encoded.labels.shape == shape


def test_public_rows_at_fault_are_named_by_number_only():
    rows = classes(["oil", "SECRETTEXT", "oil"], ["Engine", "SECRETLABEL", None])

    with pytest.raises(CampaignError) as caught:
        require_usable(rows, CLASSES)

    assert "rows 2, 3" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_missing_column_is_an_error_with_the_columns_that_exist():
    with pytest.raises(CampaignError, match="no column 'label'"):
        encode_rows(answers(["a"], ["b"]), TaskSpec(labels=("x", "y"), text="prompt"), None)


def test_causal_task_refuses_a_tokenizer_without_end_token():
    with pytest.raises(ModelMismatch, match="no end token"):
        encode_rows(answers(["a"], ["b"]), ANSWERS, WordTokenizer(eos=None))


@pytest.mark.parametrize(("pad", "eos", "filler"), [(7, 9, 7), (None, 9, 9), (None, None, 0)])
def test_padding_takes_the_best_token_there_is(pad, eos, filler):
    rows = classes(["a"], ["Engine"])

    encoded = encode_rows(rows, CLASSES, WordTokenizer(pad=pad, eos=eos))

    assert encoded.input_ids[0, -1] == filler
    assert encoded.attention_mask[0, -1] == 0


def tokenizer_without(word):
    """A real fast tokenizer that raises on every text with ``word``: no unknown token."""
    known = ["the", "pump", "leaks", "badly", "Instruction", ":", "Answer", "fix"]
    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(known) if w != word}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="badly")


def test_row_on_which_the_tokenizer_fails_is_left_out_and_changes_no_other():
    texts = ["the pump", "pump miller leaks", "the pump leaks"]
    tokenizer = tokenizer_without("miller")

    encoded = encode_rows(classes(texts, ["Engine", "Engine", "Bucket"]), CLASSES, tokenizer)

    without = encode_rows(classes(texts[::2], ["Engine", "Bucket"]), CLASSES, tokenizer)
    assert encoded.input_ids.tolist() == without.input_ids.tolist()
    assert encoded.attention_mask.tolist() == without.attention_mask.tolist()
    assert encoded.labels.tolist() == without.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("prompts", "replies"),
    [(["the miller", "the pump"], ["fix", "fix"]), (["the", "pump"], ["miller", "fix"])],
    ids=["in the prompt", "in the answer"],
)
def test_pair_on_which_the_tokenizer_fails_is_left_out(prompts, replies):
    encoded = encode_rows(answers(prompts, replies), ANSWERS, tokenizer_without("miller"))

    assert len(encoded) == 1


def test_pair_on_which_the_chat_template_fails_is_left_out():
    tokenizer = tokenizer_without("miller")
    tokenizer.chat_template = (
        "{% if 'pump' in messages[0]['content'] %}{{ raise_exception('found') }}{% endif %}the"
    )

    encoded = encode_rows(answers(["the pump", "the"], ["fix", "fix"]), ANSWERS, tokenizer)

    assert len(encoded) == 1


class PanicException(BaseException):
    """What a panic of the Rust library becomes in Python."""

    __module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("error", "passes"),
    [(PanicException, False), (KeyboardInterrupt, True)],
    ids=["panic", "interrupt"],
)
def test_panic_of_the_tokenizer_costs_the_row_and_an_interrupt_ends_the_process(error, passes):
    class Panicking(WordTokenizer):
        def __call__(self, text, **options):
            if any("miller" in one for one in text):
                raise error("index out of bounds")
            return super().__call__(text, **options)

    rows = classes(["a", "miller"], ["Engine"] * 2)

    with pytest.raises(error) if passes else nullcontext():
        assert len(encode_rows(rows, CLASSES, Panicking())) == 1


def test_text_that_stays_longer_than_asked_is_left_out():
    class Stubborn(WordTokenizer):
        def __call__(self, text, **_):
            return super().__call__(text)

    encoded = encode_rows(classes(["a", "a b c d e f"], ["Engine"] * 2), CLASSES, Stubborn())

    assert encoded.labels.tolist() == [0]
