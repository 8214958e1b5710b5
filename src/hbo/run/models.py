"""The model and its tokenizer: found, checked and loaded."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig
from hbo.config.explain import shorten
from hbo.config.overrides import dotted
from hbo.config.trl import TrainerSettings
from hbo.errors import ConfigError, EnvironmentProblem
from hbo.integrations.checkpoints import is_whole_safetensors
from hbo.run.hub import hub_is_reachable, is_in_hub_cache
from hbo.run.sources import looks_local

Progress = Callable[[str], None]

_IMPOSSIBLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
_WEIGHTS = ("*.safetensors", "*.gguf")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate_model(
    loaded: LoadedConfig, path: tuple[str, ...] = ("model",), progress: Progress | None = None
) -> str:
    """What ``from_pretrained`` takes: an asset's folder (fetched if need be), a folder, a hub id.

    Args:
        loaded: The configuration.
        path: The key that names the model: ``model`` or ``difficulty.scoring_model``.
        progress: Told when something has to be fetched.

    Raises:
        ConfigError: A local path that is not there or holds no model, or a misspelt asset.
    """
    from hbo.assets import resolve_model

    config = loaded.config
    name = config.model if path == ("model",) else str(config.difficulty.scoring_model)
    try:
        found = resolve_model(name, progress)
    except ConfigError as error:
        raise loaded.error(path, error.message) from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _IMPOSSIBLE:
            raise
        raise loaded.error(path, f"{shorten(name)} is no possible name of a folder") from None
    folder = Path(found)
    if folder.is_dir():
        if (
            not (folder / "config.json").is_file()
            and not (folder / "adapter_config.json").is_file()
        ):
            raise loaded.error(
                path, f"the folder {found!r} holds no model (no config.json); name a model's folder"
            )
    elif folder.exists():
        raise loaded.error(path, f"{found!r} is a file; name the folder that holds the model")
    elif looks_local(found):
        raise loaded.error(
            path,
            f"there is no folder {found!r} (looked from {Path.cwd()});"
            " a model is a path, an asset's name (`hbo assets list`) or a hub id",
        )
    return found


def load_tokenizer(loaded: LoadedConfig, name: str, settings: TrainerSettings) -> Any:
    """The model's tokenizer, as SFTTrainer would set it up (end-of-sequence and padding tokens)."""
    from transformers import AutoTokenizer

    options = _hub_options(loaded, ("model",), name, settings)

    def load() -> Any:
        return AutoTokenizer.from_pretrained(name, **options)

    tokenizer = _from_pretrained(loaded, ("model",), name, "tokenizer", load)
    training = settings.training
    for key in ("eos_token", "pad_token"):
        token = getattr(training, key)
        if token is None:
            continue
        if tokenizer.convert_tokens_to_ids(token) is None:
            raise loaded.error(
                ("training", key), f"is {shorten(token)}, which the tokenizer's vocabulary lacks"
            )
        setattr(tokenizer, key, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = training.chat_template_path
    if template is not None:
        tokenizer.chat_template = _template(loaded, template)
    return tokenizer


def _template(loaded: LoadedConfig, path: str) -> str:
    source = Path(path)
    if source.is_dir():
        source = source / "chat_template.jinja"
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise loaded.error(
            ("training", "chat_template_path"), f"{path!r} cannot be read: {error}"
        ) from None


def load_model(
    loaded: LoadedConfig, name: str, settings: TrainerSettings, path: tuple[str, ...] = ("model",)
) -> Any:
    """The model's weights, in the type that ``tuning.dtype`` names, on the training device."""
    import torch
    from transformers import AutoModelForCausalLM

    tuning = settings.tuning
    dtype = tuning.dtype if tuning.dtype in {None, "auto"} else getattr(torch, tuning.dtype)
    options = {
        "dtype": dtype,
        "attn_implementation": tuning.attn_implementation,
        **_quantization(tuning),
        **_init_kwargs(loaded, settings),
        **_hub_options(loaded, path, name, settings),
        "use_safetensors": True,
    }
    check_weights(loaded, name, path)

    def load() -> Any:
        with _not_spread():
            return AutoModelForCausalLM.from_pretrained(name, **options)

    model = _from_pretrained(loaded, path, name, "model", load)
    # A quantised model is placed by its loader and cannot be moved.
    quantised = tuning.load_in_8bit or tuning.load_in_4bit
    return model if quantised else model.to(settings.training.device)


@contextmanager
def _not_spread() -> Iterator[None]:
    """Load a model whole on each rank, also where ZeRO-3 is to train it.

    Transformers would spread it over the ranks as it loads, outside DeepSpeed's engine; but it is
    scored and evaluated first, and not on all ranks at once. The engine spreads it later.
    """
    from transformers.integrations import deepspeed

    found = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = found


def empty_model(
    loaded: LoadedConfig, name: str, settings: TrainerSettings, path: tuple[str, ...] = ("model",)
) -> Any:
    """The model's modules without their weights, on the ``meta`` device: costs no memory.

    Raises:
        ConfigError: Its configuration cannot be read, is of no known kind of model, or does not go
            with the settings.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = _hub_options(loaded, path, name, settings)
    attention = settings.tuning.attn_implementation
    trust = options["trust_remote_code"]

    def load() -> Any:
        config = AutoConfig.from_pretrained(name, **options)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, trust_remote_code=trust
            )

    return _from_pretrained(loaded, path, name, "model", load)


def check_weights(loaded: LoadedConfig, name: str, path: tuple[str, ...] = ("model",)) -> None:
    """Refuse a local folder whose weights are missing or cut off, before anything is computed.

    Raises:
        ConfigError: They are; the message names the file.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if not _any_of(folder, _WEIGHTS):
        if _any_of(folder, _PICKLES):
            raise loaded.error(
                path,
                f"the weights in {name!r} are pickled ({', '.join(_PICKLES)}), and a pickle can run"
                " code; load it once where you trust it, and save_pretrained writes safetensors",
            )
        raise loaded.error(
            path, f"the folder {name!r} has no weights ({', '.join(_WEIGHTS)}); copy it again"
        )
    for file in sorted(folder.glob("*.safetensors")):
        try:
            file.open("rb").close()
        except OSError as error:
            text = f"{str(file)!r} cannot be read: {error.strerror}"
            raise loaded.error(path, text) from None
        if not is_whole_safetensors(file):
            raise loaded.error(path, f"{str(file)!r} is cut off or damaged; copy it again")


def _any_of(folder: Path, kinds: tuple[str, ...]) -> bool:
    return any(file for kind in kinds for file in folder.glob(kind))


def _init_kwargs(loaded: LoadedConfig, settings: TrainerSettings) -> dict[str, Any]:
    """``training.model_init_kwargs``, without the two that would let a pickle in."""
    given: dict[str, Any] = settings.training.model_init_kwargs or {}
    for key in ("weights_only", "use_safetensors"):
        if key in given:
            raise loaded.error(
                ("training", "model_init_kwargs"),
                f"{key!r} is not set here; weights are read from safetensors and GGUF only",
            )
    return given


def _quantization(tuning: Any) -> dict[str, Any]:
    from accelerate import PartialState
    from trl import get_quantization_config

    quantization = get_quantization_config(tuning)
    if quantization is None:
        return {}
    return {
        "quantization_config": quantization,
        "device_map": {"": PartialState().local_process_index},
    }


def _hub_options(
    loaded: LoadedConfig, path: tuple[str, ...], name: str, settings: TrainerSettings
) -> dict[str, Any]:
    """What a hub needs to know besides the name; of a local folder, whether its code may run."""
    # Said either way: unset, transformers would ask on the terminal and wait.
    trust = {"trust_remote_code": bool(settings.training.trust_remote_code)}
    if Path(name).is_dir():
        return trust
    revision = settings.tuning.model_revision
    if hub_is_reachable():
        return {**trust, "revision": revision}
    if is_in_hub_cache(name, revision):
        return {**trust, "revision": revision, "local_files_only": True}
    raise EnvironmentProblem(
        f"{dotted(path)}: {name!r} is no local folder, and the hub cannot be reached to look for"
        " it; check the network, or name a folder or one of `hbo assets list`",
        where=loaded.document.place(path),
    )


def _from_pretrained(
    loaded: LoadedConfig, path: tuple[str, ...], name: str, what: str, load: Callable[[], Any]
) -> Any:
    from huggingface_hub import errors as hub

    try:
        return load()
    except hub.HfHubHTTPError as error:
        raise loaded.error(
            path, f"the hub has no {what} {name!r}: {shorten(str(error), 160)}"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
        RuntimeError,
        AssertionError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "out of memory" in str(error).lower() or "can't allocate" in str(error).lower():
            raise
        if "trust_remote_code" in str(error):
            raise loaded.error(
                path,
                f"the {what} of {name!r} brings Python code of its own, which runs only with"
                " training.trust_remote_code: true; read it first",
            ) from None
        raise loaded.error(
            path, f"the {what} of {name!r} cannot be loaded: {shorten(str(error), 200)}"
        ) from error
