"""Profiles: which models, in which precision and where, and each notebook's parameters, as one YAML
file.

Built-in profiles lie in `judgelib/profiles/`, those of your own in `profiles/` of the project; the
file's name is the profile's. A model is a hub id (`meta-llama/Llama-3.1-8B-Instruct`) or a path,
which starts with `./`, `../`, `/` or `~`. One that needs more is written as a mapping:

    target: {source: meta-llama/Llama-3.1-70B-Instruct, revision: main, quantization: fp8,
             gated: true}

Optional keys, all of them shown by `make plan PROFILE=...` before anything is loaded:

    devices: {count: 2, parallel: layers, accelerator: H100 SXM}   # absent: one CPU
    answers: {max_new_tokens: 512, side_by_side: 32}               # absent: the functions' own
    template: {enable_thinking: false}                             # options of the chat template
    collected: {expert: gpt-4o}      # an author whose texts come from an OpenAI-compatible endpoint
    download: true                   # weights and datasets may be fetched from the hub
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from judgelib.hardware import ACCELERATORS
from judgelib.models import QUANTIZATIONS
from judgelib.provenance import checkout
from judgelib.results import plain_name, project_root

BUILT_IN = Path(__file__).with_name("profiles")
KEYS = ("name", "models", "dtype", "notebooks")
OPTIONAL = ("devices", "answers", "template", "collected", "download")
MODEL_KEYS = ("source", "revision", "quantization", "gated")
PARALLEL = ("none", "layers")
ANSWERS = ("max_new_tokens", "side_by_side")
ROLES = ("target", "draft", "expert", "target_no_corrections", "draft_brief")
REQUIRED_ROLES = ("target", "draft")
DTYPES = ("float32", "bfloat16", "float16")
# Values that are the same in a notebook's source, in YAML and in a manifest.
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Devices:
    """Where models run.

    Attributes:
        count: GPUs; 0 is the CPU.
        parallel: "none", or "layers": whole layers are dealt out to the GPUs, which one process
            (and so a notebook) can do. Dividing every layer (tensor parallel) takes a process for
            each GPU: `torchrun` and `models.load_model(spread="tensor")`, or vLLM.
        accelerator: what memory and hours are computed for, of `hardware.ACCELERATORS`.
    """

    count: int = 0
    parallel: str = "none"
    accelerator: str = ""

    @property
    def torch_device(self) -> str:
        return "cuda" if self.count else "cpu"


@dataclass(frozen=True)
class Profile:
    """One checked profile.

    `models` maps roles to hub ids or paths as written, `notebooks` maps a notebook's name (without
    `.ipynb`) to the parameters that the runner sets in it; `details` maps a role to what its
    mapping says besides the source. The other attributes are the optional keys.
    """

    name: str
    models: dict[str, str]
    dtype: str
    notebooks: dict[str, dict[str, Any]]
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    devices: Devices = Devices()
    answers: dict[str, int] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    collected: dict[str, str] = field(default_factory=dict)
    download: bool = False

    @property
    def hub_models(self) -> dict[str, str]:
        """Role -> hub id of the models that are not on this machine's paths."""
        return {role: name for role, name in self.models.items() if not is_path(name)}

    def loading(self, role: str) -> dict[str, Any]:
        """How `models.load_model` loads a role: its keyword arguments."""
        found: dict[str, Any] = {"dtype": self.dtype}
        about = self.details.get(role, {})
        found |= {key: about[key] for key in ("revision", "quantization") if key in about}
        if self.template:
            found["template"] = self.template
        if self.devices.count:
            found |= {"device": self.devices.torch_device, "shared": True}
            if self.devices.parallel != "none":
                found["spread"] = self.devices.parallel
        return found

    def limits(self, batch: str) -> dict[str, Any]:
        """How long answers may be and how many are written side by side, as keyword arguments;
        `batch` is what a function calls the latter. What the profile leaves out is left out."""
        names = {"max_new_tokens": "max_new_tokens", "side_by_side": batch}
        return {names[key]: value for key, value in self.answers.items()}

    def model(self, role: str) -> str:
        """Hub id or absolute path for `role`, ready for `from_pretrained`.

        ValueError if the profile has no such role or the weights are not there.
        """
        if role not in self.models:
            raise ValueError(
                f"profile {self.name!r} has no model {role!r}; it has {', '.join(self.models)}"
            )
        source = self.models[role]
        return str(existing(source, role)) if is_path(source) else source


def folders() -> list[Path]:
    """Where profiles are looked for, one's own first."""
    return [project_root() / "profiles", BUILT_IN]


def available() -> list[str]:
    """Names of all profiles."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml")})


def load_profile(name: str, *, download: bool = False) -> Profile:
    """The profile of this name; with `download` as if it said so itself.

    ValueError for an unknown profile, unknown or missing keys, or values of the wrong kind.
    """
    if name not in available():
        raise ValueError(
            f"no profile {name!r}; expected one of {', '.join(available())}, "
            f"or a file {name}.yaml of your own in {folders()[0]}"
        )
    path = next(path for folder in folders() if (path := folder / f"{name}.yaml").is_file())
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"profile {path.name} is not valid YAML: {error}") from error
    profile = parse(content, path.name)
    if profile.name != name:
        raise ValueError(
            f"{path.name}: its name must be {name!r} as its file's, got {profile.name!r}"
        )
    return replace(profile, download=True) if download else profile


def parse(content: object, source: str) -> Profile:
    """Check a profile's content; `source` is the file's name for the messages."""
    fields = mapping(content, source, (*KEYS, *OPTIONAL), required=KEYS)
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"{source}: dtype is one of {', '.join(DTYPES)}, got {fields['dtype']!r}")
    details = parse_models(fields["models"], f"{source}, models")
    return Profile(
        name=plain_name(str(fields["name"]), "profile name"),
        models={role: about.pop("source") for role, about in details.items()},
        dtype=fields["dtype"],
        notebooks={
            name: parse_parameters(entry, f"{source}, notebooks, {name}")
            for name, entry in mapping(fields["notebooks"], f"{source}, notebooks").items()
        },
        details={role: about for role, about in details.items() if about},
        devices=parse_devices(fields.get("devices", {}), f"{source}, devices"),
        answers=parse_answers(fields.get("answers", {}), f"{source}, answers"),
        template=mapping(fields.get("template", {}), f"{source}, template"),
        collected=parse_collected(fields.get("collected", {}), f"{source}, collected"),
        download=parse_flag(fields.get("download", False), f"{source}, download"),
    )


def parse_models(content: object, where: str) -> dict[str, dict[str, Any]]:
    """Role -> source and what else is said of it; target and draft must be there."""
    models = mapping(content, where, ROLES, required=REQUIRED_ROLES)
    found = {
        role: mapping(entry, f"{where}, {role}", MODEL_KEYS) if isinstance(entry, Mapping)
        else {"source": entry}
        for role, entry in models.items()
    }  # fmt: skip
    wrong = [role for role, about in found.items() if not _is_text(about.get("source"))]
    if wrong:
        raise ValueError(f"{where}: expected a hub id or a path for {', '.join(wrong)}")
    for role, about in found.items():
        _check_model(about, f"{where}, {role}")
    return found


def _check_model(about: Mapping[str, Any], where: str) -> None:
    if not _is_text(about.get("revision", "main")):
        raise ValueError(f"{where}: a revision is a commit or a branch, got {about['revision']!r}")
    quantization = about.get("quantization", "none")
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"{where}: quantization is one of {', '.join(QUANTIZATIONS)}, got {quantization!r}"
        )
    parse_flag(about.get("gated", False), f"{where}, gated")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def parse_devices(content: object, where: str) -> Devices:
    """GPUs, how models are spread over them, and which they are."""
    found = Devices(**mapping(content, where, ("count", "parallel", "accelerator")))
    if type(found.count) is not int or found.count < 0:
        raise ValueError(f"{where}: count is how many GPUs, 0 for the CPU, got {found.count!r}")
    if found.parallel not in PARALLEL:
        raise ValueError(f"{where}: parallel is one of {', '.join(PARALLEL)}, got {found.parallel}")
    if found.count and found.accelerator not in ACCELERATORS:
        raise ValueError(
            f"{where}: accelerator is one of {', '.join(ACCELERATORS)}, got {found.accelerator!r}"
        )
    if (found.count > 1) != (found.parallel != "none"):
        raise ValueError(f"{where}: several GPUs, and only they, need parallel: layers")
    return found


def parse_answers(content: object, where: str) -> dict[str, int]:
    """Limits of answers: whole numbers of at least 1."""
    found = mapping(content, where, ANSWERS)
    wrong = [key for key, value in found.items() if type(value) is not int or value < 1]
    if wrong:
        raise ValueError(f"{where}: expected a whole number of at least 1 for {', '.join(wrong)}")
    return found


def parse_collected(content: object, where: str) -> dict[str, str]:
    """Author -> the model's name at the endpoint."""
    found = mapping(content, where, ("expert",))
    wrong = [author for author, model in found.items() if not _is_text(model)]
    if wrong:
        raise ValueError(f"{where}: expected a model's name for {', '.join(wrong)}")
    return found


def parse_flag(content: object, where: str) -> bool:
    """true or false, and nothing that YAML makes of other words."""
    if not isinstance(content, bool):
        raise ValueError(f"{where}: expected true or false, got {content!r}")
    return content


def parse_parameters(content: object, where: str) -> dict[str, Any]:
    """The `parameters` of one notebook: plain values under names."""
    entry = mapping(content, where, ["parameters"], required=["parameters"])
    parameters = mapping(entry["parameters"], f"{where}, parameters")
    wrong = [name for name, value in parameters.items() if not is_plain(value)]
    if wrong:
        raise ValueError(
            f"{where}, parameters: expected text, numbers, true, false, null or lists of these "
            f"for {', '.join(wrong)}"
        )
    return parameters


def mapping(
    content: object,
    where: str,
    allowed: Collection[str] | None = None,
    *,
    required: Collection[str] = (),
) -> dict[str, Any]:
    """`content` as a dict with text keys, all of them `allowed` (None: any), none missing."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{where}: expected names with values, got {content!r}")
    unknown = [key for key in content if allowed is not None and key not in allowed]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; "
            f"allowed are {', '.join(allowed or ())}"
        )
    missing = [key for key in required if key not in content]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return dict(content)


def is_plain(value: object) -> bool:
    """Whether a value can stand in a notebook's parameters cell as a literal."""
    return isinstance(value, PLAIN) or (isinstance(value, list) and all(map(is_plain, value)))


def is_path(model: str) -> bool:
    """Whether a model is named by its place on this machine rather than by a hub id."""
    return model.startswith(("./", "../", "/", "~"))


def existing(path: str, role: str) -> Path:
    """Absolute path of local weights: under the project's root, else in this checkout."""
    wanted = Path(path).expanduser()
    candidates = [root / wanted for root in (project_root(), checkout())]
    found = next((place for place in candidates if (place / "config.json").is_file()), None)
    if found is None:
        raise ValueError(
            f"no weights for {role!r} at {candidates[0]}: train the sandbox family with "
            "`make sandbox-models`, or name another folder or a hub id in the profile"
        )
    return found.resolve()
