"""What is captured of a model in backward, and which models are refused by name."""

import pytest
import torch
from torch import nn

from fl_core.errors import TrainingError
from fl_core.models.losses import row_losses
from fl_core.training.batches import columns_of
from fl_core.training.capture import Capture
from fl_core.training.model_checks import require_private
from fl_core.training.trainee import Trainee, trainee_of
from tests.tiny_models import ANSWERS, CLASSES, tiny_model, tiny_rows

torch.set_num_threads(1)


class Twice(nn.Module):
    """Uses one layer two times, and one with a frozen weight and a trained bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.shift = nn.Linear(4, 3)
        self.shift.weight.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.shift(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def plain_trainee(module: nn.Module) -> Trainee:
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    return Trainee(module, trained, lambda m, batch: row_losses(m(batch["x"]), batch["labels"]))


def plain_probe(width: int = 4, n: int = 2):
    torch.manual_seed(5)
    return {"x": torch.randn(n, width), "labels": torch.arange(n) % 2}


def test_layer_used_twice_adds_its_gradients_before_the_norm():
    torch.manual_seed(0)
    trainee = plain_trainee(Twice())
    batch = plain_probe(n=6)

    with Capture(trainee, n_rows=6) as capture:
        trainee.losses(trainee.module, batch).sum().backward()
        captured = capture.take()

    for i in range(6):
        loss = trainee.losses(trainee.module, {n: t[i : i + 1] for n, t in batch.items()}).sum()
        names = sorted(trainee.parameters)
        expected = torch.autograd.grad(loss, [trainee.parameters[n] for n in names])
        for name, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(captured[name][i], gradient, rtol=1e-5, atol=1e-6)


def test_recomputation_by_checkpointing_counts_once():
    torch.manual_seed(0)
    module = Twice()
    trainee = plain_trainee(module)
    batch = plain_probe(n=3)
    with Capture(trainee, n_rows=3) as capture:
        trainee.losses(module, batch).sum().backward()
        expected = capture.take()

        logits = torch.utils.checkpoint.checkpoint(module, batch["x"], use_reentrant=False)
        row_losses(logits, batch["labels"]).sum().backward()
        found = capture.take()

    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_layers_compute_as_before_once_the_capture_is_closed():
    module = Twice()
    batch = plain_probe()

    with Capture(plain_trainee(module), n_rows=2):
        pass
    module(batch["x"]).sum().backward()

    assert module.inner.weight.grad is not None
    assert "forward" not in vars(module.inner)


class Functional(nn.Module):
    """Uses a linear layer's weight past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.layer(x) + x @ self.layer.weight)


class Tied(nn.Module):
    """Two layers over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class MeanOfBatch(nn.Module):
    """Subtracts the batch mean: one row's loss depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x - x.mean(dim=0))


class RowsFlattened(nn.Module):
    """Hides the rows: the layer sees twice as many first entries."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x.reshape(-1, 2)).reshape(len(x), -1)


def with_dora() -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["0"], use_dora=True)
    return inject_adapter_in_model(config, nn.Sequential(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "1.weight", id="layer-norm"),
        pytest.param(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "1.weight", id="batch-norm"
        ),
        pytest.param(nn.Sequential(nn.Embedding(9, 4)), "0.weight", id="embedding"),
        pytest.param(nn.Sequential(nn.Conv1d(1, 1, 1)), "0.weight", id="convolution"),
        pytest.param(nn.MultiheadAttention(4, 2), "in_proj_weight", id="attention"),
        pytest.param(Tied(), "first.weight", id="tied"),
        pytest.param(with_dora(), "lora_magnitude_vector", id="dora"),
        pytest.param(Functional(), "layer.weight", id="used-past-its-layer"),
        pytest.param(MeanOfBatch(), "layer.weight", id="batch-mean"),
        pytest.param(RowsFlattened(), "layer.weight", id="rows-flattened"),
    ],
)
def test_uncovered_tensor_is_refused_by_name(module, name):
    trainee = plain_trainee(module)

    with pytest.raises(TrainingError, match=name.replace(".", r"\.")):
        require_private(trainee, plain_probe())


class Scaled(torch.autograd.Function):
    """Passes its input on and gives back another gradient than it should, to the weight only."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, 2 * gradient.T @ x


class OwnBackward(nn.Linear):
    """A linear layer whose own autograd function doubles its gradient; the capture would not."""

    def forward(self, x):
        return Scaled.apply(x, self.weight)


def test_layer_with_a_backward_of_its_own_is_refused_by_name():
    module = nn.Sequential(OwnBackward(4, 2, bias=False))

    with pytest.raises(TrainingError, match=r"0\.weight \(of a OwnBackward\)"):
        require_private(plain_trainee(module), plain_probe())


class Halved(torch.autograd.Function):
    """Hands back half of the gradient the first time it is asked, and all of it later."""

    calls = 0

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004  torch passes it
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004  torch passes it
        Halved.calls += 1
        return gradient * (0.5 if Halved.calls <= 2 else 1.0)


def test_gradients_that_are_not_those_of_plain_autograd_are_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return Halved.apply(self.layer(x))

    with pytest.raises(TrainingError, match="not what plain autograd gives"):
        require_private(plain_trainee(Odd()), plain_probe())


def test_gradient_that_is_asked_for_but_not_trained_is_refused_by_name():
    module = Twice()
    trainee = Trainee(module, {"inner.weight": module.inner.weight}, plain_trainee(module).losses)

    with pytest.raises(TrainingError, match=r"inner\.bias"):
        Capture(trainee, n_rows=2)


@pytest.mark.parametrize("task", [CLASSES, ANSWERS], ids=["classes", "answers"])
def test_adapted_models_are_covered(task):
    model = tiny_model(task)
    rows = tiny_rows(task, 2)

    require_private(trainee_of(model), columns_of(rows).tensors)
