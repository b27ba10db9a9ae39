"""From rows to token arrays of a fixed public shape.

Every text is cut and padded on the right to the task's ``max_tokens``, so that no array shape
follows the data. A row that cannot be encoded (no text, a label that the campaign does not know, a
prompt that leaves no room for its answer, a text on which the tokenizer or its template fails) is
left out by looking at that row alone (SOUNDNESS, rule 4); nothing is raised, because an error that
depends on one row would tell of it (rule 18): a tokenizer comes with the base model, and one word
left out of a vocabulary without an unknown token makes it raise on every text with that word.
The gate has normally quarantined such rows before, with reasons. For public rows, where silence
would hide a mistake, ``require_usable`` raises instead.

A causal LM sees the chat template of its tokenizer, or the plain format of ``PLAIN_PROMPT`` where
there is none. Prompt and answer are tokenized apart, so that the labels begin exactly at the
answer, as they will in generation; only the answer and the end token after it are labelled.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fl_core.campaign.specs import TaskSpec
from fl_core.data.rows import Mask, Rows, is_filled, is_text, require_columns
from fl_core.errors import CampaignError, ModelMismatch

Ids = npt.NDArray[np.int64]
A = TypeVar("A")
B = TypeVar("B")

IGNORED = -100
PLAIN_PROMPT = "Instruction:\n{prompt}\n\nAnswer:\n"
_SHOWN_ROWS = 5
_RUST = "pyo3_runtime"

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer; nothing here imports transformers."""

    pad_token_id: int | None
    eos_token_id: int | None
    bos_token_id: int | None
    chat_template: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Return a mapping with ``input_ids``, one list per text."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Return the text of a conversation."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """Rows as a model takes them; n rows of T = ``task.max_tokens`` tokens, all int64.

    Attributes:
        input_ids: ``(n, T)``, padded on the right.
        attention_mask: ``(n, T)``, 1 on tokens and 0 on padding.
        labels: ``(n,)`` class numbers, or ``(n, T)`` for a causal LM: the token itself at each
            place of the answer and -100 elsewhere, *not* shifted; the loss shifts.
        units: ``(n,)`` number of the unit that each row belongs to, 0 to the number of units less
            one, each with a row at least; None where every row is a unit of its own.
    """

    input_ids: Ids
    attention_mask: Ids
    labels: Ids
    units: Ids | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.input_ids)

    @property
    def n_units(self) -> int:
        """Number of units, which is what coins are thrown for; it stays at the site."""
        return len(self) if self.units is None else len(np.unique(self.units))


def usable_rows(rows: Rows, task: TaskSpec) -> Mask:
    """Say for each row whether its text and target can be encoded; each row by itself.

    The text must be a text that is not blank; the target one of the task's labels, or for a causal
    LM a text that is not blank.

    Raises:
        CampaignError: A column of the task is not there.
    """
    require_columns(rows, (task.text, task.target))
    texts, targets = rows.frame[task.text].tolist(), rows.frame[task.target].tolist()
    labels = set(task.labels)

    def is_target(cell: object) -> bool:
        return cell in labels if labels else is_filled(cell)

    usable = [
        is_filled(text) and is_text(target) and is_target(target)
        for text, target in zip(texts, targets, strict=True)
    ]
    return np.array(usable, dtype=np.bool_)


def require_usable(rows: Rows, task: TaskSpec) -> None:
    """Refuse *public* rows of which one cannot be encoded; never call it on a site's rows.

    Raises:
        CampaignError: Names the first rows at fault by number, from 1; no values.
    """
    bad = np.flatnonzero(~usable_rows(rows, task))
    if len(bad):
        shown = ", ".join(str(position + 1) for position in bad[:_SHOWN_ROWS])
        expected = "one of the task's labels" if task.labels else "an answer"
        raise CampaignError(
            f"{rows.source}: {len(bad)} rows cannot be used, first are rows {shown}; each needs "
            f"a text in {task.text!r} and {expected} in {task.target!r}",
            hint="correct or remove these rows",
        )


def encode_rows(
    rows: Rows, task: TaskSpec, tokenizer: Tokenizer, *, units: Ids | None = None
) -> EncodedRows:
    """Encode the usable rows, in order; the others are left out without a word.

    A text of more than ``max_tokens`` tokens is cut on the right. A causal LM's row is left out
    when the cut would leave no token of its answer, whose mean loss would be undefined.

    Args:
        rows: Rows as they were read.
        task: Columns, labels and the public length.
        tokenizer: Of the base model.
        units: ``(n,)`` any number per row, equal within a unit (``units.unit_numbers``); the
            result counts the units that are left from 0. None: every row is its own.

    Raises:
        CampaignError: A column of the task is not there.
        ModelMismatch: The tokenizer has no end token, which a causal LM needs.
    """
    usable = usable_rows(rows, task)
    frame = rows.frame[usable]
    texts, targets = frame[task.text].tolist(), frame[task.target].tolist()
    if task.kind == "classification":
        encoded, kept = _encode_classes(texts, targets, task=task, tokenizer=tokenizer)
    else:
        encoded, kept = _encode_answers(texts, targets, task=task, tokenizer=tokenizer)
    if units is None:
        return encoded
    # Counted anew: a unit all of whose rows were left out must not keep a number.
    _, numbers = np.unique(units[usable][kept], return_inverse=True)
    return replace(encoded, units=numbers.astype(np.int64))


def _encode_classes(
    texts: list[str], targets: list[str], *, task: TaskSpec, tokenizer: Tokenizer
) -> tuple[EncodedRows, list[int]]:
    numbers = {label: number for number, label in enumerate(task.labels)}
    found = _token_lists(tokenizer, texts, truncation=True, max_length=task.max_tokens)
    kept = {
        position: ids
        for position, ids in enumerate(found)
        if ids is not None and len(ids) <= task.max_tokens
    }
    input_ids, mask = _padded(list(kept.values()), task.max_tokens, _pad_id(tokenizer))
    labels = np.array([numbers[targets[position]] for position in kept], dtype=np.int64)
    return EncodedRows(input_ids=input_ids, attention_mask=mask, labels=labels), list(kept)


def _encode_answers(
    prompts: list[str], answers: list[str], *, task: TaskSpec, tokenizer: Tokenizer
) -> tuple[EncodedRows, list[int]]:
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelMismatch(
            "the tokenizer has no end token, which a causal_lm task needs after each answer; "
            "use a base model whose tokenizer sets eos_token"
        )
    begins, begin = _prompt_texts(prompts, tokenizer)
    question_ids = _token_lists(tokenizer, begins, add_special_tokens=False)
    answer_ids = _token_lists(tokenizer, answers, add_special_tokens=False)
    inputs: list[list[int]] = []
    labels: list[list[int]] = []
    kept: list[int] = []
    for position, (question, answer) in enumerate(zip(question_ids, answer_ids, strict=True)):
        if question is None or answer is None:
            continue
        head, tail = [*begin, *question], [*answer, end]
        if len(head) < task.max_tokens:
            kept.append(position)
            inputs.append([*head, *tail][: task.max_tokens])
            labels.append([*([IGNORED] * len(head)), *tail][: task.max_tokens])
    input_ids, mask = _padded(inputs, task.max_tokens, _pad_id(tokenizer))
    label_ids, _ = _padded(labels, task.max_tokens, IGNORED)
    return EncodedRows(input_ids=input_ids, attention_mask=mask, labels=label_ids), kept


def _prompt_texts(prompts: list[str], tokenizer: Tokenizer) -> tuple[list[str | None], list[int]]:
    def conversation(prompt: str) -> str:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return text

    # A chat template spells its own first token; the plain format gets the tokenizer's, if any.
    if tokenizer.chat_template:
        return [_or_none(conversation, prompt) for prompt in prompts], []
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [PLAIN_PROMPT.format(prompt=prompt) for prompt in prompts], begin


def _token_lists(
    tokenizer: Tokenizer, texts: Sequence[str | None], **options: Any
) -> list[list[int] | None]:
    def tokens(some: list[str]) -> list[list[int]]:
        # Tokenizers disagree on what an empty list of texts gives.
        return [list(ids) for ids in tokenizer(some, **options)["input_ids"]] if some else []

    there = [text for text in texts if text is not None]
    together = _or_none(tokens, there)
    if together is None:
        log.warning("texts cannot be tokenized together, each is tried by itself")
        alone = (_or_none(tokens, [text]) for text in there)
        found = iter([None if lists is None else lists[0] for lists in alone])
    else:
        found = iter(together)
    return [None if text is None else next(found) for text in texts]


def _or_none(encode: Callable[[A], B], value: A) -> B | None:
    try:
        return encode(value)
    except BaseException as error:  # rule 18: what one row makes fail must not show
        # A panic of the Rust library is no Exception; an interrupt of this process must go on.
        if not isinstance(error, Exception) and type(error).__module__ != _RUST:
            raise
        # Its text may hold the row's.
        log.debug("text cannot be encoded error=%s", type(error).__name__)
        return None


def _padded(token_lists: list[list[int]], width: int, filler: int) -> tuple[Ids, Ids]:
    ids = np.full((len(token_lists), width), filler, dtype=np.int64)
    mask = np.zeros((len(token_lists), width), dtype=np.int64)
    for row, tokens in enumerate(token_lists):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def _pad_id(tokenizer: Tokenizer) -> int:
    # Padding is masked, so any valid id serves where the tokenizer names none.
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None), 0)
