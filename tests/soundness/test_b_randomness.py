"""SOUNDNESS, section B: noise and coins come from a cipher, and seeds void every claim."""

import ast
import random
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from fl_core.privacy.randomness import SecureStream, SeededStream

ROOT = Path(__file__).parents[2]
# Everything that draws noise or coins, or decides who is in a batch.
DRAWING = ("privacy", "training", "secure_aggregation")
# Default generators: torch's functions and in-place methods, numpy's, the standard library's.
FORBIDDEN = {
    "bernoulli",
    "bernoulli_",
    "default_rng",
    "dropout",
    "exponential_",
    "Generator",
    "manual_seed",
    "multinomial",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random_",
    "random_sample",
    "RandomSampler",
    "RandomState",
    "randperm",
    "seed",
    "standard_normal",
    "trunc_normal_",
    "uniform_",
}
# ``stream.normal`` is ours; ``torch.normal`` and ``np.random.normal`` are not.
LIBRARIES = {"torch", "np", "numpy", "random", "secrets"}


def drawn_elsewhere(tree: ast.AST) -> list[str]:
    """Return every use of a generator that is not our stream."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == "random"]
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("random"):
            found.append(str(node.module))
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_library = owner.split(".")[0] in LIBRARIES and node.attr in {"normal", "random"}
            # ``options.seed`` is a number; ``torch.seed`` and ``np.random.seed`` are generators.
            is_number = node.attr == "seed" and owner.split(".")[0] not in LIBRARIES
            if is_library or (node.attr in FORBIDDEN and not is_number):
                found.append(f"{owner}.{node.attr}")
    return found


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path",
    modules(*(f"fl_core/{name}" for name in DRAWING)),
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_rule_06_no_module_that_draws_uses_a_default_generator(path):
    assert drawn_elsewhere(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "noise = torch.randn(3)",
        "noise = torch.normal(0.0, 1.0, (3,))",
        "tensor.normal_()",
        "mask = torch.bernoulli(p)",
        "order = np.random.default_rng().permutation(3)",
        "x = np.random.normal(size=3)",
        "import random",
        "from numpy.random import Generator",
        "torch.manual_seed(0)",
    ],
)
def test_rule_06_the_source_check_finds_a_planted_generator(text):
    assert drawn_elsewhere(ast.parse(text))


def test_rule_06_the_source_check_lets_our_stream_pass():
    text = "noise = stddev * stream.normal(shape)\ncoins = stream.coins(n, rate)"

    assert drawn_elsewhere(ast.parse(text)) == []


# --- The known-state attack. A released update shows pure noise wherever a gradient is zero. The
# transform below gives one normal per 16-bit half of a 32-bit word, for either generator, so that
# the two differ in nothing but where the words come from.

N_STATE = 624
QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


def released_noise(words: np.ndarray) -> np.ndarray:
    halves = np.stack([words >> 16, words & 0xFFFF], axis=1).reshape(-1)
    return QUANTILES[halves]


def seen_words(noise: np.ndarray) -> np.ndarray:
    halves = np.searchsorted(QUANTILES, noise).reshape(-1, 2)
    return (halves[:, 0] << 16) | halves[:, 1]


def untempered(word: int) -> int:
    """Invert the output function of MT19937 (Matsumoto and Nishimura 1998, section 2.1)."""
    word ^= word >> 18
    word ^= (word << 15) & 0xEFC60000
    # Each pass makes seven (then eleven) more bits right.
    shifted = word
    for _ in range(4):
        shifted = word ^ ((shifted << 7) & 0x9D2C5680)
    result = shifted
    for _ in range(2):
        result = shifted ^ (result >> 11)
    return result


def predicted_noise(noise: np.ndarray, n: int) -> np.ndarray:
    """Solve the generator's state from released noise, and go on drawing where it is."""
    state = [untempered(int(word)) for word in seen_words(noise)[:N_STATE]]
    clone = random.Random()  # noqa: S311  the attacked generator
    clone.setstate((3, (*state, N_STATE), None))
    return released_noise(np.array([clone.getrandbits(32) for _ in range(n)]))


def twister_words(n: int) -> np.ndarray:
    planted = random.SystemRandom().getrandbits(256)
    twister = random.Random(planted)  # noqa: S311  the attacked generator
    return np.array([twister.getrandbits(32) for _ in range(n)])


def cipher_words(n: int) -> np.ndarray:
    words = SecureStream()._words(n)
    return (words >> np.uint64(32)).astype(np.int64)


def test_rule_06_noise_of_a_default_generator_is_predicted_to_the_last_bit():
    noise = released_noise(twister_words(N_STATE + 1000))

    guess = predicted_noise(noise[: 2 * N_STATE], 1000)

    assert np.array_equal(guess, noise[2 * N_STATE :])


def test_rule_06_the_same_attack_learns_nothing_about_our_stream():
    noise = released_noise(cipher_words(N_STATE + 1000))

    guess = predicted_noise(noise[: 2 * N_STATE], 1000)

    rest = noise[2 * N_STATE :]
    # 2000 guesses of one in 65536: more than 5 hits come by chance once in 1e12.
    assert np.sum(guess == rest) <= 5
    # A correlation of 2000 pairs passes .11 by chance with a probability under 1e-6.
    assert abs(np.corrcoef(guess, rest)[0, 1]) < 0.11


def test_rule_07_only_what_runs_in_one_process_for_a_researcher_draws_from_a_seed():
    users = {
        str(path.relative_to(ROOT))
        for path in modules("fl_core", "tasks", "flows")
        if SeededStream.__name__ in path.read_text()
    }

    assert users == {"fl_core/privacy/randomness.py", "fl_core/simulation.py", "fl_core/facade.py"}


def test_rule_07_the_seeded_stream_says_that_it_voids_the_claim():
    assert "NON-PRIVATE" in str(SeededStream.__doc__)
    assert not SeededStream.is_private
    assert SecureStream.is_private
