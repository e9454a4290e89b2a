"""How long it takes, and how much memory, to analyse the largest models without their weights.

Configs of Llama-3-70B and Mixtral-8x7B on ``meta``, each in a process of its own: seconds to
analyse, to cost and to plan, and the most memory that the process ever held.

    python -m benchmarks.scale
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.record import table, write
from tests.zoo import torchvision_models

GOAL_SECONDS, GOAL_GIB = 10.0, 2.0
TOKENS = 16
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3-70B": {
        "config": "LlamaConfig",
        "model": "LlamaForCausalLM",
        "vocab_size": 128_256,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "Mixtral-8x7B": {
        "config": "MixtralConfig",
        "model": "MixtralForCausalLM",
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


def build(name: str) -> nn.Module:
    """Return the model on ``meta``: its class, its sizes, and no weights."""
    torchvision_models()  # transformers imports it
    import transformers

    options = dict(MODELS[name])
    config, model = (getattr(transformers, options.pop(key)) for key in ("config", "model"))
    with torch.device("meta"):
        return model(config(**options, use_cache=False)).eval()


def measure(name: str) -> dict[str, Any]:
    """Return what one model costs in this process."""
    model = build(name)
    start_gib = _peak_gib()
    import secateur

    example = {"input_ids": torch.zeros(1, TOKENS, dtype=torch.long, device="meta")}
    started, busy = time.perf_counter(), time.process_time()
    structure = secateur.analyze(model, example)
    analysed, cpu = time.perf_counter(), time.process_time() - busy
    cost = structure.cost({g.name: g.size // 2 for g in structure.exact})
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "operations": len(structure.inferred.recording.ops),
        "groups": len(structure.groups),
        "seconds": analysed - started,
        "cpu_seconds": cpu,
        "cost_seconds": time.perf_counter() - analysed,
        "parameters_at_half": cost.params,
        "gib": _peak_gib(),
        "gib_before": start_gib,
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="measure one model in this process and print it")
    only = parser.parse_args().only
    if only:
        print(json.dumps(measure(only)))
        return
    data, rows = {}, []
    load = os.getloadavg()[0]
    for name in MODELS:
        command = [sys.executable, "-m", "benchmarks.scale", "--only", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = data[name] = json.loads(out.strip().split("\n")[-1])
        rows.append(
            [
                name,
                f"{found['parameters'] / 1e9:.1f}",
                f"{found['operations']:,}",
                f"{found['groups']}",
                f"{found['seconds']:.1f}",
                f"{found['cpu_seconds']:.1f}",
                f"{found['gib']:.2f}",
                f"{found['gib_before']:.2f}",
                f"{found['parameters_at_half'] / 1e9:.1f}",
            ]
        )
    heading = ["on `meta`", "10⁹ parameters", "operations", "groups", "seconds", "CPU s", "GiB"]
    text = table([*heading, "GiB before", "10⁹ at half of every exact group"], rows)
    text += (
        f"\n\nGoal: {GOAL_SECONDS:.0f} s and {GOAL_GIB:.0f} GiB. {TOKENS} tokens; the first "
        "analysis of the process, so that imports and caches count. CPU s are the process's own, "
        "whatever else the machine did. GiB is the most that the process ever held; before it "
        "that was Python, torch, transformers and the model's modules. The load of the "
        f"machine was {load:.1f} on {os.cpu_count()} cores."
    )
    write("scale", "Analysis of models that fit no machine", data, text)


if __name__ == "__main__":
    main()
