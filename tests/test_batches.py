"""Several texts from one model: each is what it is alone, whatever stands beside it."""

from functools import partial

import pytest
import torch

from rcmha_lite import checkpoint
from rcmha_lite.config import PRESETS
from rcmha_lite.generation import Stream, generate, generate_batch, generate_batch_ids, generate_ids, generators
from rcmha_lite.model import LanguageModel

POSITIONS = [
    "none",
    "absolute-sinusoidal",
    "absolute-learned",
    "relative-sinusoidal",
    "relative-learned",
    "rope",
    "alibi",
]
PROMPTS = [torch.randint(65, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 1, 8, 5, 30, 12)]


def model(**changes):
    torch.manual_seed(0)
    changes = {"context": 12, "window": 12, "zero_output": False} | changes
    network = LanguageModel(PRESETS["tiny"].replace(**changes))
    for parameter in network.parameters():  # tables and biases start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return network.double().eval()


@pytest.mark.parametrize("kernel_size", [0, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_logits_of_a_batch_are_those_of_each_alone(position, kernel_size):
    """Past the context, too, where caches let go of what is old and absolute positions start again."""
    network = model(position=position, kernel_size=kernel_size)
    ids = torch.randint(65, (3, 40))
    for length in (1, 5, 12, 20):
        together, alone = Stream(network, ids[:, :length]), [Stream(network, row[None, :length]) for row in ids]
        for t in range(length, 40):
            found = together.logits()
            for row, stream in zip(found, alone, strict=True):
                torch.testing.assert_close(row[None], stream.logits(), rtol=0, atol=1e-12)
            together.append(ids[:, t])
            for k, stream in enumerate(alone):
                stream.append(ids[k, t : t + 1])
    assert found.std() > 0.1


@pytest.mark.parametrize("kernel_size", [0, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_of_different_lengths_give_what_they_give_alone(position, kernel_size):
    network = model(position=position, kernel_size=kernel_size)
    together = list(zip(*generate_batch_ids(network, PROMPTS, 20, temperature=0), strict=True))
    assert together == [tuple(generate_ids(network, prompt, 20, temperature=0)) for prompt in PROMPTS]


def test_prompts_of_different_lengths_with_memory_and_fresh_queries():
    network = model(position="relative-learned", fresh_queries=True, context=2, window=2, memory=6)
    together = list(zip(*generate_batch_ids(network, PROMPTS, 9, temperature=0), strict=True))
    assert together == [tuple(generate_ids(network, prompt, 9, temperature=0)) for prompt in PROMPTS]


def test_a_sample_does_not_depend_on_how_many_there_are():
    network, prompt = model(), PROMPTS[0]
    several = [list(zip(*generate_batch_ids(network, [prompt] * n, 25, seed=3), strict=True)) for n in (1, 2, 5)]
    assert several[0] == several[1][:1] == several[2][:1]
    assert several[1] == several[2][:2]
    assert len(set(several[2])) == 5
    assert several[0][0] == tuple(generate_ids(network, prompt, 25, seed=3))
    assert several[2][1] != list(zip(*generate_batch_ids(network, [prompt] * 2, 25, seed=4), strict=True))[1]


def test_seeds_of_samples_are_all_different_and_of_any_size():
    for seed in (0, 2**63 - 1):
        seeds = [generator.initial_seed() for generator in generators(seed, 1000)]
        assert seeds[0] == seed
        assert len(set(seeds)) == 1000
    assert not {g.initial_seed() for g in generators(1, 99)} & {g.initial_seed() for g in generators(2, 99)}


def test_texts_of_a_batch_end_before_stop_each_on_its_own():
    network, prompts = model(), ["ROMEO:", "JULIET:", "I"]
    whole = generate_batch(network, prompts, 60, seed=1)
    assert [len(text) for text in whole] == [60] * 3
    stop = whole[1][20:22]
    cut = generate_batch(network, prompts, 60, seed=1, stop=stop)
    assert cut == [text.split(stop)[0] for text in whole]
    assert len(cut[1]) <= 20
    assert cut[0] == "".join(generate(network, prompts[0], 60, seed=1, stop=stop))
    assert generate_batch(network, [], 9) == []
    assert generate_batch(network, ["a", "b"], 0) == ["", ""]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"temperature": -3.0}, "temperature"), ({"top_p": 7.0}, "top_p 7.0"), ({"top_k": 0}, "top_k 0")],
)
@pytest.mark.parametrize("length", [0, 5])
def test_sampling_is_checked_at_every_length(given, message, length):
    for ask in (
        lambda: list(generate(model(), "A", length, **given)),
        lambda: generate_batch(model(), ["A"], length, **given),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_bad_prompts_of_a_batch_and_training_mode(unchecked):
    network = model().train()
    for prompts, message in (([[1], []], "prompt is empty"), ([[1], [99]], "id 99 is outside")):
        with pytest.raises(ValueError, match=message):
            list(generate_batch_ids(network, [torch.tensor(p, dtype=torch.long) for p in prompts], 1))
    list(generate_batch_ids(network, PROMPTS, 2))
    assert network.training


@pytest.fixture
def sample(call):
    """Exit status, standard output and error of ``sample``."""
    return partial(call, "sample")


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    checkpoint.save_weights(tmp_path / "run", LanguageModel(PRESETS["tiny"]))
    return tmp_path / "run"


def test_samples_on_the_command_line(sample, trained):
    words = ["--checkpoint", trained, "--prompt", "MEN", "--length", 9, "--seed", 4]
    alone = sample(*words)[1].removesuffix("\n")
    status, three, err = sample(*words, "--samples", 3)
    assert status == 0, err
    assert three.startswith(f"--- 1 of 3 ---\n{alone}\n--- 2 of 3 ---\nMEN")
    two = sample(*words, "--samples", 2)[1]
    assert two.replace("of 2", "of 3") == three.split("--- 3 of 3 ---")[0]
    assert sample(*words, "--samples", 0)[0] == 2


def test_a_prompt_from_a_file(sample, trained, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"ROMEO:\nO\n")
    status, out, err = sample("--checkpoint", trained, "--prompt-file", file, "--length", 5)
    assert status == 0, err
    assert out.startswith("ROMEO:\nO\n")
    assert len(out) == 9 + 5 + 1
    bad = {
        b"ROMEO:\r\n": r"has Windows line ends, \r\n",
        b"": "is empty",
        b"\xef\xbb\xbfA": "byte order mark",
        b"\xff": "is not UTF-8",
        "é".encode(): "unknown characters 'é'",
    }
    for content, message in bad.items():
        file.write_bytes(content)
        status, out, err = sample("--checkpoint", trained, "--prompt-file", file)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert message in err
    status, _, err = sample("--checkpoint", trained, "--prompt-file", file, "--prompt", "A")
    assert status == 2
    assert "--prompt and --prompt-file both say" in err


def test_bad_sampling_at_length_0_gets_one_line(sample, trained):
    for words, message in (
        ("--top-p 7", "top_p 7.0"),
        ("--temperature -3", "temperature -3.0"),
        ("--top-k 0", "top_k 0"),
    ):
        for several in ([], ["--samples", 2]):
            status, out, err = sample("--checkpoint", trained, "--length", 0, *words.split(), *several)
            assert (status, out, err.count("\n")) == (1, "", 1)
            assert message in err
