"""``--data``: files of arrays, tensors and text become batches; nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur import cli
from secateur.cli.data import read_data
from secateur.cli.models import load
from secateur.cli.options import Given
from secateur.errors import ConfigError, FileError
from secateur.graph.cost import human
from secateur.runtime.batches import call, checked
from tests import zoo
from tests.cli import networks

NETWORKS = Path(__file__).parent / "networks.py"
CONV = [f"{NETWORKS}:conv", "--input", "2,3,12,12"]


def shapes(batches: Any) -> list[Any]:
    """Return the shape of each tensor of each batch, where it is."""
    forms = {
        Tensor: lambda b: tuple(b.shape),
        tuple: lambda b: [tuple(x.shape) for x in b],
        dict: lambda b: {n: tuple(x.shape) for n, x in b.items() if isinstance(x, Tensor)},
    }
    return [forms[type(batch)](batch) for batch in batches]


def written(folder: Path, ending: str, **arrays: np.ndarray) -> str:
    path = folder / f"data{ending}"
    if ending == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({n: torch.from_numpy(a.copy()) for n, a in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_read_data_when_one_array_then_its_rows_are_the_samples(
    tmp_path: Path, ending: str
) -> None:
    images = np.arange(7 * 3 * 12 * 12, dtype=np.float32).reshape(7, 3, 12, 12)
    model = networks.conv()
    batches = list(checked(read_data(written(tmp_path, ending, images=images), model, "", 3)))
    assert shapes(batches) == [[(3, 3, 12, 12)], [(3, 3, 12, 12)], [(1, 3, 12, 12)]]
    assert torch.equal(torch.cat([b[0] for b in batches]), torch.from_numpy(images))
    assert all(call(model, batch).shape[1] == 5 for batch in batches)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_read_data_when_arrays_have_names_then_they_are_keyword_arguments(
    tmp_path: Path, ending: str
) -> None:
    arrays = {"features": np.ones((4, 4)), "tokens": np.ones((4, 6), dtype=np.uint8)}
    model = networks.TwoInputs()
    batches = read_data(written(tmp_path, ending, **arrays), model, "", 2)
    assert shapes(batches) == [{"features": (2, 4), "tokens": (2, 6)}] * 2
    assert call(model, next(iter(batches))).shape == (2, 6, 3)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_read_data_when_the_one_name_is_an_argument_of_the_model_then_it_is_passed_as_that(
    tmp_path: Path, ending: str
) -> None:
    place = written(tmp_path, ending, features=np.ones((2, 4)))
    assert shapes(read_data(place, networks.TwoInputs(), "", 8)) == [{"features": (2, 4)}]


def test_read_data_when_arrays_have_no_names_then_they_are_positional(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, np.ones((3, 6), dtype=np.int32), np.ones((3, 4), dtype=np.float16))
    model = networks.TwoInputs()
    (batch,) = read_data(str(path), model, "", 8)
    assert [x.dtype for x in batch] == [torch.int64, torch.float32]
    assert call(model, batch).shape == (3, 6, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given", ["f2", "f4", "f8", ">f4", "longdouble"])
def test_read_data_when_floats_differ_then_the_models_own_precision_counts(
    tmp_path: Path, dtype: torch.dtype, given: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, np.ones((2, 4), dtype=given))
    ((batch,),) = read_data(str(path), nn.Linear(4, 1).to(dtype), "", 8)
    assert batch.dtype is dtype


@pytest.mark.parametrize("given", ["i1", "u1", ">i2", "u2", "i4", "i8", "u8"])
def test_read_data_when_whole_numbers_then_an_embedding_reads_them(
    tmp_path: Path, given: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, np.ones((2, 4), dtype=given))
    ((batch,),) = read_data(str(path), nn.Embedding(4, 2), "", 8)
    assert batch.tolist() == [[1] * 4] * 2
    assert batch.dtype is torch.int64


def objects() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.array([{}], dtype=object))
    return file.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def plain(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pt", b"", ".pt files are not read, because reading them can run code"),
        ("a.pkl", b"", "safetensors.torch.save_file"),
        ("a.npy", b"", "numpy.savez"),
        ("a.csv", b"", "give module:function, or a file that ends in .npz, .safetensors, .txt"),
        ("a.npz", None, "there is no such file"),
        ("a.safetensors", None, "cannot be read"),
        ("a.npz", b"", "is damaged, or no .npz file"),
        ("a.npz", pickle.dumps(print), "is damaged, or no .npz file"),
        ("a.npz", objects(), "more than plain arrays: Object arrays cannot be loaded"),
        ("a.npz", zipped("x.npy", b"nothing"), "'x' holds bytes, which are no numbers"),
        ("a.npz", zipped("x.npy", pickle.dumps(print)), "holds bytes, which are no numbers"),
        ("a.npz", plain(x=np.ones((64, 64)))[:-90], "is damaged"),
        ("a.npz", zipped("notes.txt", b"hello"), "holds bytes, which are no numbers"),
        ("a.npz", plain(x=np.array(["a", "b"])), "holds <U1, which are no numbers"),
        ("a.npz", plain(x=np.array([(1, 2.0)], dtype="i4,f4")), "which are no numbers"),
        ("a.npz", plain(x=np.array(["2020-01-01"], dtype="M8[D]")), "which are no numbers"),
        ("a.npz", plain(), "holds nothing: give arrays of one sample per row"),
        ("a.npz", plain(x=np.ones(())), "holds x (): give"),
        ("a.npz", plain(x=np.ones((0, 3))), "holds x (0, 3): give"),
        ("a.npz", plain(x=np.ones((2, 3)), y=np.ones(3)), "holds x (2, 3), y (3,): give"),
        ("a.safetensors", b"garbage!" * 9, "is damaged, or no safetensors file"),
        ("a.txt", b"hello", "a text needs a tokenizer"),
    ],
)
def test_read_data_when_the_file_will_not_do_then_one_error_says_why(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, FileError)) as raised:
        read_data(str(tmp_path / name), nn.Linear(3, 1), str(tmp_path), 8)
    assert said in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "size", "batches"),
    [(16, None, 8), (100, None, 13), (3, None, 3), (16, 8, 2), (24, None, 8), (1, None, 1)],
)
def test_read_data_when_no_size_is_said_then_there_are_batches_enough_to_judge(
    tmp_path: Path, rows: int, size: int | None, batches: int
) -> None:
    place = written(tmp_path, ".npz", x=np.zeros((rows, 4), dtype=np.float32))
    found = read_data(place, nn.Linear(4, 2), "", size)
    assert len(list(found)) == batches


def test_read_data_when_batches_would_be_empty_then_error() -> None:
    with pytest.raises(ConfigError, match="--batch-size 0"):
        read_data("a.npz", nn.Linear(3, 1), "", 0)


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Return transformers, which imports torchvision, which may need help."""
    zoo.torchvision_models()
    return pytest.importorskip("transformers")


TEXT = "the cat sat\n\non the mat and the dog\nthe mat\n"
WORDS = ["[UNK]", "[PAD]", "the", "cat", "sat", "on", "mat", "and", "dog"]

Saved = Callable[..., Any]


@pytest.fixture
def saved(transformers: Any, tmp_path: Path) -> Saved:
    """Return a function that makes a model with a tokenizer of whole words in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "text.txt").write_text(TEXT)

    def save(name: str, pad: str | None = "[PAD]", **settings: Any) -> Any:
        own = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
        config = getattr(transformers, f"{name.partition('For')[0].removesuffix('Model')}Config")
        model = getattr(transformers, name)(config(**own, intermediate_size=16, **settings))
        model.save_pretrained(tmp_path / "model")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token=pad, unk_token="[UNK]"
        )
        tokenizer.save_pretrained(tmp_path / "model")
        return model.eval()

    return save


@pytest.mark.slow  # imports transformers
def test_read_data_when_text_and_an_encoder_then_lines_are_padded(
    saved: Saved, tmp_path: Path
) -> None:
    model = saved("BertModel", max_position_embeddings=5)
    batches = read_data(str(tmp_path / "text.txt"), model, str(tmp_path / "model"), 2)
    assert [batch["attention_mask"].tolist() for batch in batches] == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        [[1, 1]],
    ]
    assert batches[1]["input_ids"].tolist() == [[2, 6]]
    assert all(call(model, batch).last_hidden_state.shape[2] == 8 for batch in checked(batches))


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_read_data_when_text_and_a_language_model_then_windows_of_all_of_it(
    saved: Saved, tmp_path: Path, pad: str | None
) -> None:
    model = saved("LlamaForCausalLM", pad, max_position_embeddings=4)
    batches = read_data(str(tmp_path / "text.txt"), model, str(tmp_path / "model"), 8)
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[2, 3, 4, 5], [2, 6, 7, 2]]  # and "dog the mat", which fills no window, is left out
    ]
    assert call(model, batches[0]).past_key_values is None


@pytest.mark.slow  # imports transformers
def test_read_data_when_text_is_shorter_than_the_context_then_it_is_one_window(
    saved: Saved, tmp_path: Path
) -> None:
    model = saved("LlamaForCausalLM", max_position_embeddings=64)
    (batch,) = read_data(str(tmp_path / "text.txt"), model, str(tmp_path / "model"), 8)
    assert batch["input_ids"].shape == (1, 11)


@pytest.mark.slow  # imports transformers
def test_evaluate_when_text_and_a_language_model_then_perplexity_and_how_it_was_measured(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, place = saved("LlamaForCausalLM", max_position_embeddings=4), str(tmp_path / "model")
    words = ["evaluate", place, "--data", str(tmp_path / "text.txt")]
    assert cli.main([*words, "--json"]) == cli.DONE, capsys.readouterr().err
    facts = json.loads(capsys.readouterr().out)
    ids, last = torch.tensor([[2, 3, 4, 5], [2, 6, 7, 2]]), torch.tensor([[8, 2, 6]])
    assert (facts["window"], facts["stride"], facts["tokens"]) == (4, 4, 11)
    assert (facts["windows"], facts["predictions"]) == (3, 8)
    with torch.no_grad():
        total = model(ids, labels=ids).loss * 6 + model(last, labels=last).loss * 2
    assert facts["value"] == pytest.approx(float((total / 8).exp()), rel=1e-4)
    np.savez(tmp_path / "ids.npz", ids.numpy())
    rows = ["evaluate", place, "--data", str(tmp_path / "ids.npz"), "--json"]
    assert cli.main(rows) == cli.DONE
    facts = json.loads(capsys.readouterr().out)
    assert (facts["windows"], facts["window"], facts["predictions"]) == (2, 4, 6)
    assert cli.main([*words, "--stride", "2"]) == cli.DONE
    assert "2 apart" in capsys.readouterr().out


@pytest.mark.slow  # imports transformers
def test_read_data_when_text_does_not_do_then_error_says_what_to_give(
    saved: Saved, transformers: Any, tmp_path: Path
) -> None:
    model, folder = saved("BertModel"), str(tmp_path / "model")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="there is no text in it"):
        read_data(str(tmp_path / "empty.txt"), model, folder, 8)
    text = str(tmp_path / "text.txt")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer: none of .*tokenizer.json"):
        read_data(text, model, folder, 8)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="the tokenizer of .* fails: "):
        read_data(text, model, folder, 8)
    saved("BertModel")
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)
    )
    with pytest.raises(ConfigError, match="reads two texts, one of which it writes"):
        read_data(text, t5, folder, 8)


def test_prune_when_data_is_a_file_then_criterion_sees_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.cat([images for images, _ in networks.batches()]).numpy()
    labels = np.arange(len(images)) % 5
    np.savez(tmp_path / "labelled.npz", images, labels)
    words = ["--criterion", "taylor", "--sparsity", "0.5", "--dry-run"]
    data = ["--data", str(tmp_path / "labelled.npz"), "--batch-size", "4"]
    assert cli.main(["prune", *CONV, *words, *data]) == cli.DONE, capsys.readouterr().err
    assert cli.main(["prune", *CONV, *words, "--data", "x.pt"]) == cli.FAILED
    assert "can run code" in capsys.readouterr().err
    np.savez(tmp_path / "images.npz", images)
    words[1], data[1] = "activation", str(tmp_path / "images.npz")
    assert cli.main(["prune", *CONV, *words, *data]) == cli.DONE, capsys.readouterr().err
    data[1] = str(tmp_path / "labelled.npz")
    assert cli.main(["prune", *CONV, *words, *data]) == cli.FAILED
    assert "2 inputs, and Sequential takes 1" in capsys.readouterr().err


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Return a file of 48 images without labels."""
    generator = torch.Generator().manual_seed(0)
    save_file(
        {"input": torch.randn(48, 3, 12, 12, generator=generator)}, tmp_path / "x.safetensors"
    )
    return str(tmp_path / "x.safetensors")


def repaired(tmp_path: Path, *words: str) -> Any:
    """Prune the network on the command line and return what the report says of the repair."""
    out = tmp_path / "small"
    assert cli.main(["prune", *CONV, "--sparsity", "0.5", "--out", str(out), *words]) == cli.DONE
    return json.loads((out / "report.json").read_text())["repair"]


@pytest.mark.parametrize("asked", [[], ["--repair", "least_squares"], ["--repair", "bias"]])
def test_prune_when_there_are_inputs_then_what_stays_makes_up_for_what_goes(
    tmp_path: Path, images: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = repaired(tmp_path, "--criterion", "l2", "--data", images, *asked)
    assert facts["how"] == (asked[1] if asked else "least_squares")
    assert {each["tensor"] for each in facts["refits"]} == {"3.weight", "7.weight"}
    assert facts["after"]["error"] < facts["before"]["error"]
    printed = capsys.readouterr().out
    assert "repair" in printed
    page = (tmp_path / "small" / "report.html").read_text()
    assert "What stays makes up for it" in page


def test_prune_when_nobody_says_how_a_cost_is_shared_then_the_data_does_as_in_python(
    tmp_path: Path, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--of", "macs", "--data", images, "--batch-size", "8"]
    facts = repaired(tmp_path, *words)
    assert "is shared out" in " ".join(capsys.readouterr().out.split())
    saved = load_file(tmp_path / "small" / "model.safetensors")
    source = load(CONV[0], Given(input=[CONV[2]]))
    data = list(load_file(images)["input"].split(8))
    result = sc.prune(source.model, source.example, 0.5, of="macs", data=data)
    assert result.repair is not None
    assert facts["after"]["error"] == pytest.approx(result.repair.after.error, rel=1e-4)
    torch.testing.assert_close(saved, dict(result.model.state_dict()))
    assert cli.main(["prune", *CONV, "--sparsity", "0.5", *words, "--dry-run"]) == cli.DONE
    assert f"→ {human(result.after.params)} params" in " ".join(capsys.readouterr().out.split())


def test_prune_when_no_repair_is_asked_for_then_weights_stay_as_they_are(
    tmp_path: Path, images: str
) -> None:
    assert (
        repaired(tmp_path, "--criterion", "activation", "--data", images, "--repair", "none")
        is None
    )
    assert repaired(tmp_path) is None


def test_prune_when_single_weights_are_masked_then_a_repair_adjusts_the_others(
    tmp_path: Path, images: str
) -> None:
    words = ["--criterion", "wanda", "--granularity", "element", "--repair", "sparse"]
    facts = repaired(tmp_path, *words, "--data", images)
    assert facts["how"] == "sparse"
    assert facts["after"]["error"] < facts["before"]["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repair", "bias"], "--repair bias needs --data"),
        (["--repair", "least_square", "--data", "x.npz"], "Did you mean 'least_squares'?"),
        (
            ["--repair", "bias", "--criterion", "taylor", "--data", f"{NETWORKS}:batches"],
            "--repair bias needs batches of inputs alone",
        ),
        (
            ["--repair", "bias", "--loss", f"{NETWORKS}:squares", "--data", f"{NETWORKS}:features"],
            "--repair bias needs batches of inputs alone",
        ),
    ],
)
def test_prune_when_a_repair_cannot_be_then_one_line_says_what_to_give(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--sparsity", "0.5", "--out", str(tmp_path / "small")]
    assert cli.main(["prune", *CONV, *out, *words]) == cli.FAILED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize(("name", "key"), [("a.jsonl", "text"), ("a.jsonl:body", "body")])
def test_read_data_when_json_lines_then_each_text_is_a_document(
    saved: Saved, tmp_path: Path, name: str, key: str
) -> None:
    texts = ["the cat sat", "on the\nmat and the dog"]
    lines = [json.dumps({key: text, "n": 1}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n")
    folder = str(tmp_path / "model")
    bert = saved("BertModel", max_position_embeddings=6)
    (batch,) = read_data(str(tmp_path / name), bert, folder, 2)
    assert batch["input_ids"].tolist() == [[2, 3, 4, 1, 1, 1], [5, 2, 6, 7, 2, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    llama = saved("LlamaForCausalLM", max_position_embeddings=4)
    (batch,) = read_data(str(tmp_path / name), llama, folder, 2)
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5], [2, 6, 7, 2]]  # no padding, no gap


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "the cat"}\n{"text"', "line 2: no JSON"),
        ('{"txt": "the cat"}', "has no text 'text'. Did you mean 'txt'?"),
        ('{"text": 3, "body": "the"}', "It has 'body'. Name another one as a.jsonl:field"),
        ('["the cat"]', "line 1: has no text 'text'"),
    ],
)
def test_read_data_when_json_lines_will_not_do_then_error_names_the_line(
    saved: Saved, tmp_path: Path, line: str, why: str
) -> None:
    model = saved("LlamaForCausalLM", max_position_embeddings=4)
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ConfigError) as caught:
        read_data(str(tmp_path / "a.jsonl"), model, str(tmp_path / "model"), 2)
    assert why in str(caught.value)


@pytest.mark.slow  # imports transformers
def test_compare_when_there_is_data_then_it_has_the_perplexity_that_evaluate_has(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("LlamaForCausalLM", max_position_embeddings=4)
    dense, small = str(tmp_path / "model"), str(tmp_path / "small")
    what = ["--sparsity", "0.5", "--names", "*mlp*", "--exclude", "*embed_tokens", "--uniform"]
    assert cli.main(["prune", dense, *what, "--out", small]) == cli.DONE, capsys.readouterr().err
    data = ["--data", str(tmp_path / "text.txt"), "--json"]
    capsys.readouterr()
    assert cli.main(["compare", dense, small, "--runs", "1", *data]) == cli.DONE
    facts = json.loads(capsys.readouterr().out)
    for name, place in (("dense", dense), ("pruned", small)):
        assert cli.main(["evaluate", place, *data]) == cli.DONE, capsys.readouterr().err
        value = json.loads(capsys.readouterr().out)["value"]
        assert facts[name]["perplexity"]["value"] == pytest.approx(value, rel=1e-6)
    assert facts["pruned"]["perplexity"]["value"] != facts["dense"]["perplexity"]["value"]


@pytest.mark.slow  # imports transformers
def test_prune_when_for_a_gguf_converter_then_rows_are_blocks_or_one_line_says_why_not(
    transformers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    config = transformers.LlamaConfig(**own, intermediate_size=768, max_position_embeddings=16)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    words = ["prune", str(tmp_path / "dense"), "--for"]
    small = ["--sparsity", "0.4", "--out", str(tmp_path / "small")]
    assert cli.main([*words, "gguf", *small]) == cli.DONE
    told = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (told["intermediate_size"], told["hidden_size"]) == (512, 32)
    capsys.readouterr()
    for more, why in (
        (["gguf", "--round-to", "8"], "rows of 'model.layers.0.mlp.down_proj.weight' would have"),
        (["ggfu"], "Did you mean 'gguf'?"),
        (["gguf", "--what", "heads", "--round-to", "1"], "K-quants pack 256"),
    ):
        other = ["--sparsity", "0.5", "--out", str(tmp_path / "other")]
        assert cli.main([*words, *more, *other]) == cli.FAILED
        assert why in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
