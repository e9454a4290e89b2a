"""``secateur prune --stream``: a Hugging Face folder, block by block, in little memory."""

from __future__ import annotations

from pathlib import Path

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.streaming import prune_checkpoint
from secateur.streaming.checkpoint import on_meta

from .data import read_data
from .inputs import read_inputs, tokens_or_image
from .options import Calibration, Given
from .outcome import reported
from .presets import preset
from .show import show
from .training import NONE, Training


def stream(
    model: str,
    given: Given,
    config: Config,
    calibration: Calibration,
    training: Training,
    out: Path | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Prune a Hugging Face folder that need not fit into memory, and show what became of it.

    Raises:
        ConfigError: MODEL is no such folder, or options are given that need the whole model.
    """
    if out is None:
        raise ConfigError("--stream writes as it goes: say --out DIR, and leave --dry-run out")
    if training != NONE or calibration.loss is not None:
        raise ConfigError("--stream is one shot without labels: leave --train and --loss out")
    if given.arg or given.weights:
        raise ConfigError("--stream reads a Hugging Face folder: leave --arg and --weights out")
    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"--stream reads a folder of Hugging Face's, and {model} is none: leave --stream out, "
            "or write it with save_pretrained first"
        )
    whole, _ = on_meta(folder)
    example = read_inputs(given.input) if given.input else tokens_or_image(whole)
    if example is None:
        raise ConfigError(f"{folder}: give example inputs, such as --input input_ids=1,16:1000")
    data, size = calibration.data, calibration.batch_size
    batches = None if data is None else read_data(data, whole, str(folder), size)
    result = prune_checkpoint(
        folder,
        out,
        example,
        config=config,
        data=batches,
        repair=calibration.repair,
        check=None if target is None else preset(target).check,
    )
    lines, facts = reported(result, whole, example, out, [], config, timed=False)
    lines.renderables.append("blocks.json says of each block what stays, and how exact it is")
    facts |= {"plan": result.plan.counts, "warnings": result.warnings}
    show(lines, facts, as_json=as_json)
