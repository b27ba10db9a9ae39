"""A released adapter as an MLflow model, where fedloom is not installed.

MLflow copies this file into every model version and runs it, so it imports nothing of fedloom and
repeats the few lines it needs. It also runs once at the coordinator, when a version is logged;
torch is therefore imported only when a model is loaded. The base model does not travel: it is the
folder or GGUF file of ``FEDLOOM_BASE_MODEL``, or else what the version's ``base`` names here, a
path or an installed package. Its content hash is compared before the adapter is attached, because
another base of the same shape would load and answer wrongly without a word.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

_BASE_VARIABLE = "FEDLOOM_BASE_MODEL"
_IGNORED_SUFFIXES = {".py", ".pyc"}
_BATCH = 32
_CHUNK = 1 << 20


class AdapterModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Base model, adapter and, for classification, head; answers texts."""

    def load_context(self, context: Any) -> None:
        """Load base and adapter; MLflow passes the argument by this name.

        Raises:
            RuntimeError: No base model at the place named, or one of another content.
        """
        import torch
        from peft import PeftModel

        torch.set_grad_enabled(False)
        adapter = Path(context.artifacts["adapter"])
        self.form = json.loads((adapter / "fedloom.json").read_text(encoding="utf-8"))
        self.is_classifier = self.form["task"] == "classification"
        base, self.tokenizer = _load_base(
            _verified_base(context.model_config or {}), is_classifier=self.is_classifier
        )
        self.model = PeftModel.from_pretrained(base, str(adapter)).eval()
        if self.is_classifier:
            self.weight, self.bias = _load_head(adapter)

    # mlflow 3.17 replaces the signature by one made from this type hint, unless it is a frame.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[Any]:
        """Return one answer per text, in order.

        Args:
            context: Not used; MLflow passes it.
            model_input: One column of texts; MLflow makes it from a list too.
            params: ``max_new_tokens`` of a causal language model.

        Returns:
            Classification: dicts of ``label``, its ``score`` and ``scores`` by label, which are
            the softmax of the logits. Causal language model: the continuation, greedy.
        """
        del context
        texts = _texts(model_input)
        if self.is_classifier:
            return [answer for batch in _batches(texts) for answer in self._classify(batch)]
        length = int((params or {}).get("max_new_tokens", 64))
        return [self._continue(text, max_new_tokens=length) for text in texts]

    def logits(self, texts: list[str]) -> Any:
        """Return the logits of a classifier, ``(n_texts, n_labels)`` float32."""
        import torch
        from torch.nn import functional

        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.form["max_tokens"],
            return_tensors="pt",
        )
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            pooled = functional.layer_norm(mean, mean.shape[-1:])
            return functional.linear(pooled, self.weight, self.bias)

    def _classify(self, texts: list[str]) -> Iterator[dict[str, Any]]:
        labels = self.form["labels"]
        for row in self.logits(texts).softmax(-1).tolist():
            best = max(range(len(labels)), key=row.__getitem__)
            scores = dict(zip(labels, row, strict=True))
            yield {"label": labels[best], "score": row[best], "scores": scores}

    def _continue(self, text: str, *, max_new_tokens: int) -> str:
        tokens = self.tokenizer(
            _prompt(text, self.tokenizer), return_tensors="pt", add_special_tokens=False
        )
        answer = self.model.generate(
            **tokens,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        new = answer[0, tokens["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))


def content_sha256(path: Path) -> str:
    """Return the content hash of a model folder or file, as fedloom computes it."""
    if path.is_file():
        found = {path.name: path}
    else:
        found = {
            str(p.relative_to(path)): p
            for p in path.rglob("*")
            if p.is_file()
            and p.suffix not in _IGNORED_SUFFIXES
            and not any(
                part.startswith(".") or part == "__pycache__" for part in p.relative_to(path).parts
            )
        }
    lines = (f"{_file_sha256(found[name])}  {name}\n" for name in sorted(found))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _verified_base(config: dict[str, Any]) -> Path:
    path = _find_base(os.environ.get(_BASE_VARIABLE) or config["base"])
    found, expected = content_sha256(path), config["base_sha256"]
    if found != expected:
        raise RuntimeError(
            f"base model at {path} has content hash {found}, the adapter was trained on "
            f"{expected} ({config['base']}); set {_BASE_VARIABLE} to that model"
        )
    return path


def _find_base(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        path = _of_package(name)
    quantised = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if quantised and not (path / "config.json").exists():
        return quantised[0]
    return path


def _of_package(name: str) -> Path:
    """Return the model folder or GGUF file of an installed package; none of its code is run."""
    try:
        listed = files(name) or []
    except (PackageNotFoundError, ValueError):
        listed = []
    for file in sorted(listed, key=lambda f: len(f.parts)):
        if file.name == "config.json":
            return Path(str(file.locate())).parent
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise RuntimeError(
        f"no base model {name!r}: neither a path nor an installed package with a model; "
        f"set {_BASE_VARIABLE} to the folder or GGUF file of the base model"
    )


def _load_base(path: Path, *, is_classifier: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    place = path
    if path.is_file():
        place, options["gguf_file"] = path.parent, path.name
    kind = AutoModel if is_classifier else AutoModelForCausalLM
    # Eager attention is what the adapter was trained with.
    base = kind.from_pretrained(
        str(place), dtype=torch.float32, attn_implementation="eager", **options
    )
    tokenizer = AutoTokenizer.from_pretrained(str(place), padding_side="right", **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return base.eval(), tokenizer


def _load_head(adapter: Path) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    head = load_file(str(adapter / "head.safetensors"))
    return head["weight"], head["bias"]


def _prompt(text: str, tokenizer: Any) -> str:
    """Return the text of a prompt as it was written in training."""
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    return f"{tokenizer.bos_token or ''}Instruction:\n{text}\n\nAnswer:\n"


def _texts(model_input: pd.DataFrame) -> list[str]:
    if model_input.shape[1] != 1:
        raise ValueError(f"expected one column of texts, got {model_input.shape[1]} columns")
    return [str(text) for text in model_input.iloc[:, 0]]


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


mlflow.models.set_model(AdapterModel())
