"""More stays where a layer has more outliers."""

from __future__ import annotations

from dataclasses import replace

from secateur.errors import FileError
from secateur.scoring.allocations import allocators
from secateur.selection.calibration import Calibration, observe_forwards

from .case import FOREIGN, Case, Spread

TIMES_THE_MEAN = 5.0
RANGE = 0.08


@allocators.register(data=True)
def owl(case: Case) -> Spread:
    """A share that falls with the share of outliers among weights times their inputs' norms.

    Shares lie within 0.08 of the mean share; an outlier is more than 5 times the mean of its layer.

    Yin et al., 2023, arXiv:2310.05175 (OWL)
    """
    if "outliers" not in case.known.found:
        case.known.found["outliers"] = [_outliers(case)]
    outliers = [share for row in case.known.found["outliers"] for share in row]
    if len(outliers) != len(case.selectables):
        raise FileError(FOREIGN)
    return _within(outliers, case)


def _outliers(case: Case) -> list[float]:
    """Return the share of outliers of each selectable's weights."""
    batches = case.needs_data("owl")
    assert case.known.model is not None
    asking = [replace(each, criterion="wanda") for each in case.selectables]
    calibration = Calibration(asking)
    observe_forwards(case.known.model, batches, calibration, structure=case.structure)
    tensors = {name: p.detach() for name, p in case.known.model.named_parameters()}
    outliers = []
    for each in asking:
        found = total = 0.0
        for part in calibration.known(each):
            weight = tensors[part.tensor]
            norm = calibration.values(each, part, weight)["input_norm"]
            size = (part.granularity.rows(weight).abs() * norm).float()
            found += float((size > TIMES_THE_MEAN * size.mean()).sum())
            total += size.numel()
        outliers.append(found / total if total else 0.0)
    return outliers


def _within(outliers: list[float], case: Case) -> Spread:
    """Return shares that lie RANGE around a mean, least where outliers are most."""
    of_unit = [sum(outliers[i] for i in unit) / len(unit) for unit in case.units]
    low, high = min(of_unit), max(of_unit)
    scaled = [(x - low) / (high - low) if high > low else 0.5 for x in of_unit]
    mean = sum(scaled) / len(scaled)
    place = {i: mean - x for unit, x in zip(case.units, scaled, strict=True) for i in unit}

    def spread(ratio: float) -> list[float]:
        most = min(2 * RANGE, 2 * ratio, 2 * (1 - ratio))
        return [min(1.0, max(0.0, ratio + most * place[i])) for i in range(len(outliers))]

    return spread
