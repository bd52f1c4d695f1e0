"""What the user asks of the plugin: ``additional_config={"judge": {...}}`` and, for one request,
``extra_args={"judge": ...}``. Knows nothing of vLLM.

Every judge has one *dial*, from strict to loose: a head's threshold, or a training-free rule's
setting (`rulebook.KINDS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from judgelib.head_config import check_threshold
from judgelib.rulebook import KINDS

KEY = "judge"
"""Where both `additional_config` and a request's `extra_args` are looked up."""

RULES = ("topk", "ratio", "typical")
"""The training-free rules that need nothing but the target's logits at the token itself."""

_REFUSED = {
    "js": "weighs the draft's distribution, which vLLM does not keep",
    "kl": "weighs the draft's distribution, which vLLM does not keep",
    "ensemble": "weighs the draft's distribution, which vLLM does not keep",
    "deferred": "looks ahead in the window, while the plugin judges each token by itself",
    "random": "draws random numbers, which would shift those of a request's seed",
}


@dataclass(frozen=True)
class JudgeConfig:
    """The judge of an engine.

    Attributes:
        head: folder or hub id of a judge head; or else
        rule: a training-free rule, one of `RULES`.
        threshold: of the head; None: the head's own.
        setting: of the rule.
        floor: with a head: tokens less than `floor` times as likely as the likeliest stay out.
        any_model: let the head judge a model of another name, architecture or layer count.
        allow_untested: run with a vLLM, a runner or a parallelism that the plugin was not tested
            with.

    Raises:
        ValueError: values that do not go together, or that the head or rule cannot take.
    """

    head: str | None = None
    rule: str | None = None
    threshold: float | None = None
    setting: float | None = None
    floor: float | None = None
    any_model: bool = False
    allow_untested: bool = False

    def __post_init__(self) -> None:
        if (self.head is None) == (self.rule is None):
            raise ValueError(
                f"{KEY} needs either head (a folder or hub id) or rule (one of "
                f"{', '.join(RULES)}), got head={self.head!r} and rule={self.rule!r}"
            )
        self._check_kinds()
        self._check_belongs("head", ("threshold", "floor", "any_model"))
        self._check_belongs("rule", ("setting",))
        if self.rule is not None:
            self._check_rule(self.rule)
        for value in (self.threshold, self.floor):
            if value is not None:
                check_threshold(value)

    @classmethod
    def of(cls, additional_config: object) -> JudgeConfig | None:
        """The judge in an engine's `additional_config`; None if there is none.

        Raises:
            ValueError: entries that are unknown or wrong.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None or given is False:
            return None
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ValueError(
                f"{KEY} in additional_config must be a dictionary such as "
                f'{{"head": PATH, "threshold": 0.5}}, or false; got {given!r:.80}'
            )
        unknown = [str(name) for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"{KEY} in additional_config knows {', '.join(known)}; got {', '.join(unknown)}"
            )
        return cls(**given)

    @property
    def dial_name(self) -> str:
        return "setting" if self.head is None else "threshold"

    def check_dial(self, value: float) -> None:
        """ValueError unless the dial can stand at `value`."""
        if self.rule is None:
            check_threshold(value)
        else:
            KINDS[self.rule].make(value)

    def dial_of(self, wish: object, default: float) -> float | None:
        """Where the dial stands for one request; None: no judge.

        Args:
            wish: the request's `extra_args["judge"]`. None or True: as the engine; False: off; a
                number, or {"threshold": number} ({"setting": number} with a rule). vLLM's server
                turns false and true into the whole numbers 0 and 1, so these mean off and on, also
                offline; a threshold of exactly 0 or 1 is written 0.0 or 1.0.
            default: the engine's dial.

        Raises:
            ValueError: anything else, or a number that the dial cannot stand at.
        """
        if isinstance(wish, Mapping):
            wish = self._only_entry(wish)
        elif wish is None or (isinstance(wish, int) and wish in (0, 1)):
            return default if wish is None or wish else None
        if isinstance(wish, bool) or not isinstance(wish, int | float):
            raise ValueError(
                f"{KEY} in a request must be true, false, a {self.dial_name} or "
                f'{{"{self.dial_name}": number}}; got {wish!r:.80}'
            )
        self.check_dial(float(wish))
        return float(wish)

    def _only_entry(self, wish: Mapping[Any, Any]) -> object:
        if list(wish) != [self.dial_name]:
            raise ValueError(
                f"{KEY} in a request of this engine has the one entry {self.dial_name}; got "
                f"{', '.join(map(str, wish)) or 'none'}"
            )
        return wish[self.dial_name]

    def _check_kinds(self) -> None:
        for name in ("head", "rule"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{KEY}: {name} must be some text; got {value!r:.80}")
        for name in ("threshold", "setting", "floor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"{KEY}: {name} must be a number; got {value!r:.80}")
        for name in ("any_model", "allow_untested"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{KEY}: {name} must be true or false")

    def _check_belongs(self, owner: str, names: tuple[str, ...]) -> None:
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if given and getattr(self, owner) is None:
            raise ValueError(f"{KEY}: {', '.join(given)} go with a {owner}, which is not given")

    def _check_rule(self, rule: str) -> None:
        if rule in _REFUSED:
            raise ValueError(
                f"{KEY}: the rule {rule} {_REFUSED[rule]}; take one of {', '.join(RULES)}"
            )
        if rule not in RULES:
            raise ValueError(f"{KEY}: expected a rule of {', '.join(RULES)}, got {rule!r}")
        if self.setting is None:
            known = ", ".join(f"{value:g}" for value in KINDS[rule].settings)
            raise ValueError(f"{KEY}: the rule {rule} needs a setting, such as one of {known}")
        self.check_dial(self.setting)
