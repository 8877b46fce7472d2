"""Prior fields: those from which the gates of PEPNet are computed."""

from __future__ import annotations

from collections.abc import Sequence

from dlen.models.features import FeatureSpec
from dlen.valid import did_you_mean


def prior_fields(
    spec: FeatureSpec, names: Sequence[str] | None, sides: Sequence[Sequence[str]], setting: str
) -> list[int]:
    """Indices of the prior fields among the embedded fields.

    Args:
        spec: layout of the features.
        names: names of the prior fields; None for those of ``sides``.
        sides: groups of sides; the fields of the first group that has any are the prior fields.
        setting: name of the setting in errors.

    Raises:
        ValueError: a prior field is not an embedded field, or there is none.
    """
    if names is None:
        found = [[i for i, own in enumerate(spec.sides) if own in group] for group in sides]
        if not any(found):
            raise ValueError(
                f"{setting} must name the prior fields of the gates, as no embedded field is of side "
                f"{' or '.join(side for group in sides for side in group)}; the embedded fields are "
                f"{', '.join(spec.fields) or 'none'}"
            )
        return next(indices for indices in found if indices)
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{setting} must be a list of field names or null, got {names!r}")
    for name in names:
        if name not in spec.fields:
            hint = did_you_mean(name, spec.fields)
            raise ValueError(f"{setting}: {name!r} is not one of the embedded fields {', '.join(spec.fields)}{hint}")
    return [spec.fields.index(name) for name in names]
