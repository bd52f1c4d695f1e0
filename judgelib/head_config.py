"""What a head knows about itself besides its weights: models, feature, training, threshold.

Everything is checked when a config is made, so that a file edited by hand is refused on loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from judgelib.models import FEATURES, LanguageModel
from judgelib.results import to_json

FORMAT = 1
_LAYER = re.compile(r"layer_([1-9]\d*)")


@dataclass(frozen=True)
class ModelRecord:
    """What a head remembers of a model.

    Attributes:
        name: a hub id, or of a local folder only its last component, so that a head works in every
            clone and tells nobody's paths.
        architecture: the class name, such as "LlamaForCausalLM".
        hidden_size, layers: as the model has them.
        revision: the hub's commit, where there is one.

    Raises:
        ValueError: a value of the wrong kind.
    """

    name: str
    architecture: str
    hidden_size: int
    layers: int
    revision: str | None = None

    def __post_init__(self) -> None:
        _expect(_is_text(self.name), "name", "some text", self.name)
        _expect(_is_text(self.architecture), "architecture", "a class name", self.architecture)
        _expect(_is_count(self.hidden_size), "hidden_size", "a positive integer", self.hidden_size)
        _expect(_is_count(self.layers), "layers", "a positive integer", self.layers)
        revision = self.revision
        _expect(revision is None or _is_text(revision), "revision", "text or null", revision)

    @classmethod
    def of(cls, model: LanguageModel) -> ModelRecord:
        """The record of a loaded model."""
        network = getattr(model.model, "_orig_mod", model.model)  # inside what torch.compile made
        return cls(
            name=public_name(model.name),
            architecture=type(network).__name__,
            hidden_size=model.hidden_size,
            layers=model.layers,
            revision=getattr(network.config, "_commit_hash", None),
        )

    def differences(self, other: ModelRecord) -> list[str]:
        """What tells `other` from this model, in words. Revisions are recorded, not compared."""
        found = [] if _same_name(self.name, other.name) else ["name"]
        names = {"architecture": "architecture", "layers": "layer count"}
        return found + [
            words for name, words in names.items() if getattr(self, name) != getattr(other, name)
        ]

    def __str__(self) -> str:
        revision = f" @ {self.revision[:12]}" if self.revision else ""
        size = f"{self.layers} layers x {self.hidden_size}"
        return f"{self.name}{revision} ({self.architecture}, {size})"


@dataclass(frozen=True)
class HeadConfig:
    """Everything about a head but its weights.

    Attributes:
        target, draft: the pair of models it was made for; draft None: any.
        feature: "post_norm" (what the output head sees), "pre_norm" (before the final norm), or
            "layer_<n>", the output of decoder layer n, counted from 1.
        of: whose hidden state: "target", "draft", or "both" (target first).
        token: after which token has been processed: "draft", "target", or "both" (draft first). The
            decoding loop can supply the target's hidden state at the draft's token only; the others
            are for studies on stored features.
        hidden_widths: of an MLP; () is a linear head.
        source: what made the labels: "annotated", "mined", ...
        training: plain JSON: questions, tokens, seed, hyper-parameters, versions.
        threshold: a token is accepted above this probability, in [0, 1].
        threshold_choice: how the threshold was chosen, in words.
        format_version: of the files on disk.

    Raises:
        ValueError: a value that is unknown or of the wrong kind, or a draft's feature without a
            draft.
    """

    target: ModelRecord
    draft: ModelRecord | None = None
    feature: str = "post_norm"
    of: str = "target"
    token: str = "draft"
    hidden_widths: tuple[int, ...] = ()
    source: str = "unknown"
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    threshold: float = 0.5
    threshold_choice: str = "fixed"
    format_version: int = FORMAT

    def __post_init__(self) -> None:
        _expect(self.of in ("target", "draft", "both"), "of", "target, draft or both", self.of)
        tokens = ("draft", "target", "both")
        _expect(self.token in tokens, "token", "draft, target or both", self.token)
        _expect(_is_text(self.source), "source", "some text", self.source)
        choice = self.threshold_choice
        _expect(_is_text(choice), "threshold_choice", "some text", choice)
        check_threshold(self.threshold)
        version = self.format_version
        _expect(version == FORMAT, "format_version", f"{FORMAT}; upgrade judgelib", version)
        self._check_records()
        self._check_feature()
        self._settle("hidden_widths", _widths(self.hidden_widths))
        self._settle("training", _plain(self.training))

    @property
    def width(self) -> int:
        """How many numbers the head reads."""
        return (1 + (self.token == "both")) * sum(model.hidden_size for model in self._read_models)

    @property
    def layer(self) -> int | None:
        """n of "layer_<n>", else None."""
        found = _LAYER.fullmatch(self.feature)
        return int(found[1]) if found else None

    @property
    def decodes(self) -> bool:
        """Whether the decoding loop can supply what the head reads."""
        return self.of == "target" and self.token == "draft"

    @property
    def kind(self) -> str:
        return "MLP " + " x ".join(map(str, self.hidden_widths)) if self.hidden_widths else "linear"

    @property
    def reads(self) -> str:
        """The feature in words."""
        whose = {"both": "target and draft"}.get(self.of, self.of)
        token = {"both": "both models' tokens"}.get(self.token, f"the {self.token}'s token")
        return f"{self.feature} hidden state of the {whose}, after {token} (width {self.width})"

    @classmethod
    def from_json(cls, values: Any) -> HeadConfig:
        """Inverse of `dataclasses.asdict`; ValueError for missing, unknown and wrong entries."""
        if isinstance(values, dict) and values.get("format_version", FORMAT) != FORMAT:
            version = values["format_version"]
            _expect(False, "format_version", f"{FORMAT}; upgrade judgelib", version)
        values = _known(cls, values)
        draft = values["draft"]
        records = {
            "target": ModelRecord(**_known(ModelRecord, values["target"])),
            "draft": None if draft is None else ModelRecord(**_known(ModelRecord, draft)),
        }
        return cls(**{**values, **records})

    @property
    def _read_models(self) -> list[ModelRecord]:
        models = {"target": self.target, "draft": self.draft}
        return [model for role, model in models.items() if model and self.of in (role, "both")]

    def _check_records(self) -> None:
        target, draft = self.target, self.draft
        _expect(isinstance(target, ModelRecord), "target", "a ModelRecord", target)
        _expect(isinstance(draft, ModelRecord | None), "draft", "a ModelRecord or None", draft)
        if self.of != "target" and self.draft is None:
            raise ValueError(f"a head that reads the {self.of} needs a record of the draft")

    def _check_feature(self) -> None:
        known = isinstance(self.feature, str) and (self.feature in FEATURES or self.layer)
        _expect(bool(known), "feature", f"{', '.join(FEATURES)} or layer_<n>", self.feature)
        for model in self._read_models:
            _check_depth(self, model)

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen: only here


def public_name(name: str) -> str:
    """A hub id as it is, of a path of this machine only the last component.

    >>> public_name("meta-llama/Llama-3.1-8B"), public_name("/home/me/models/Llama-3.1-8B")
    ('meta-llama/Llama-3.1-8B', 'Llama-3.1-8B')
    """
    path = Path(name)
    local = (
        path.is_dir() or path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
    )
    return path.resolve().name if local else name


def check_threshold(threshold: float) -> None:
    """ValueError unless `threshold` is a number in [0, 1]."""
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    _expect(number and 0 <= threshold <= 1, "threshold", "a number between 0 and 1", threshold)


def _check_depth(config: HeadConfig, model: ModelRecord) -> None:
    if config.layer and config.layer > model.layers:
        raise ValueError(
            f"expected a feature of one of the {model.layers} layers of {model.name}, got "
            f"{config.feature!r}"
        )


def _same_name(first: str, second: str) -> bool:
    """Whether two names can mean one model: a local copy lacks the hub's owner."""
    if "/" in first and "/" in second:
        return first == second
    return first.rsplit("/", 1)[-1] == second.rsplit("/", 1)[-1]


def _known(kind: type[ModelRecord] | type[HeadConfig], values: Any) -> dict[str, Any]:
    """`values`, if they are exactly the entries of `kind`."""
    if not isinstance(values, dict):
        raise ValueError(f"expected the entries of a {kind.__name__}, got {values!r:.80}")
    names = [entry.name for entry in fields(kind)]
    missing = [name for name in names if name not in values]
    unknown = [name for name in values if name not in names]
    if missing or unknown:
        raise ValueError(
            f"a {kind.__name__} has the entries {', '.join(names)}; missing here: "
            f"{missing or 'none'}; unknown: {unknown or 'none'}"
        )
    return values


def _plain(training: Any) -> dict[str, Any]:
    """A copy as JSON gives it back."""
    known = isinstance(training, Mapping)
    _expect(known, "training", "a dictionary of JSON values", training)
    try:
        made: dict[str, Any] = json.loads(to_json(dict(training)))
    except ValueError as error:
        raise ValueError(f"training must hold plain, finite JSON values only: {error}") from error
    return made


def _widths(widths: Any) -> tuple[int, ...]:
    good = isinstance(widths, list | tuple) and all(map(_is_count, widths))
    _expect(good, "hidden_widths", "a list of positive integers", widths)
    return tuple(widths)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _expect(good: bool, name: str, wanted: str, got: object) -> None:
    if not good:
        raise ValueError(f"{name} must be {wanted}; got {got!r:.80}")
