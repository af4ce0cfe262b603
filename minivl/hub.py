"""Models of a Hugging Face hub, through huggingface_hub into its normal cache; and weights in several files.

Where hub and cache lie, the token and offline work are that library's settings: HF_ENDPOINT HF_HOME HF_TOKEN
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from .errors import InputError, some
from .files import read_json, read_tensors, sha256, write_text

DESCRIPTIONS = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
              "special_tokens_map.json", "added_tokens.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "open_clip_model.safetensors")  # the first there is
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")  # else the first of these, else what ends so:
PICKLED = (".bin", ".pth", ".pt", ".npz")
TRAINING = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state")  # what a trainer leaves is no weights
ID = re.compile(r"\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)
ENDS = (".safetensors", ".json", ".txt", ".gz", ".git", *PICKLED)  # a text that ends so is a path
LOG_IN = "set HF_TOKEN or run `hf auth login`"

logger = logging.getLogger(__name__)


def is_id(text: object) -> bool:
    """Whether this is a text of the form of a hub id, ``owner/name``; what ends like a file of weights is none."""
    return (isinstance(text, str) and ID.fullmatch(text) is not None and "--" not in text and ".." not in text
            and not text.endswith(ENDS))


def cache_folder() -> Path:
    """Where converted weights lie: ``$XDG_CACHE_HOME`` (or ``~/.cache``) ``/minivl/weights``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivl" / "weights"


def converted(id: str) -> Path:
    """The file that ``python -m weights.fetch ID`` writes, whether it exists or not."""
    return cache_folder() / f"{id.replace('/', '--')}.safetensors"


def snapshot(id: str, *, revision: str | None = None, pickled: bool = False) -> Path:
    """The local folder of a model of the hub: its configs, tokenizer files and weights; nothing else is fetched.

    What is fetched is held against the size and hash that the hub lists. Weights come last, so that a folder which
    has them is complete. Where the hub does not answer, a complete folder of the cache is taken, with a warning.

    Args:
        id: ``owner/name``.
        revision: a branch, tag or commit; None = "main".
        pickled: take weights as .bin .pth .pt .npz, which `load` refuses, where there are no safetensors.

    Raises:
        InputError: no id; no such model or revision, or not without a token; no weights that can be read; neither
            connection nor a complete folder in the cache; a download that broke off or has another hash.
        OSError: the cache cannot be written (a full disk, say).
    """
    if not is_id(id):
        raise InputError(f"{id!r} is no id of the hub: owner/name is needed")
    listed = _listed(id, revision)
    if isinstance(listed, Exception):
        return _cached(id, revision, pickled, listed)
    commit, hashes = listed
    weights = weights_name(hashes, id, pickled=pickled)
    wanted = {*DESCRIPTIONS, *TOKENIZERS} - {weights}
    if hashes.keys().isdisjoint(DESCRIPTIONS[:2]):  # the config has a name of its own
        wanted |= {name for name in hashes if re.fullmatch(r"[^/]+(?<!\.index)\.json", name)}
    for name in (*sorted(wanted & hashes.keys()), weights):
        file = _fetch(id, name, commit, hashes[name])
    for name in sorted(set(_index(file).values())) if weights == INDEX else ():
        if name not in hashes:
            raise InputError(f"{INDEX} names {name}, which the hub does not have", source=id)
        _fetch(id, name, commit, hashes[name])
    ref = file.parents[2] / "refs" / (revision or "main")  # the library's own note, for offline work
    if commit != revision and not (ref.is_file() and ref.read_text() == commit):
        write_text(ref, commit)
    return file.parent


def _listed(id: str, revision: str | None) -> tuple[str, dict[str, str | None]] | Exception:
    """The commit and its files with their hashes (sha256 or git's); or why the hub does not answer."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError
    try:  # with a time limit: without one the library waits for ever
        info = HfApi().model_info(id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if info.sha is None or info.siblings is None:
            raise ValueError("no list of files")
        return info.sha, {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id for one in info.siblings}
    except (HTTPError, OSError) as error:
        if 400 <= _status(error) < 500 and _status(error) != 429:
            raise InputError(_reason(id, error, revision), source=id) from error
        return error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{constants.ENDPOINT} does not answer as a Hugging Face hub does ({error}); is HF_ENDPOINT "
                         "right?", source=id) from error


def _fetch(id: str, name: str, commit: str, promised: str | None) -> Path:
    """One file in the cache; where it is not there yet it is downloaded and held against its hash."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError
    known = isinstance(try_to_load_from_cache(id, name, revision=commit), str)
    try:
        file = Path(hf_hub_download(id, name, revision=commit))
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the last two: hf_xet's
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the local disk, and clear as it is
        raise InputError(f"{name} was not downloaded: {_reason(id, error)}; call again to go on with what is missing",
                         source=id) from error
    if known or promised is None:
        return file
    blob = file.resolve()
    digest = (sha256(blob) if len(promised) == 64 else
              hashlib.sha1(b"blob %d\0" % blob.stat().st_size + blob.read_bytes()).hexdigest())
    if digest != promised:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise InputError(f"{name} came damaged and was removed: its hash is {digest}, the hub lists {promised}; "
                         "call again", source=id)
    return file


def _cached(id: str, revision: str | None, pickled: bool, why: Exception) -> Path:
    """The cache's folder, if it is complete, where the hub did not answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    offline = isinstance(why, OfflineModeIsEnabled)
    reason = "HF_HUB_OFFLINE is set" if offline else _reason(id, why)
    told = f"revision {revision or 'main'!r}"
    try:  # no pattern: what is needed is looked at below
        folder = Path(snapshot_download(id, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        raise InputError(f"{reason}, and the cache does not have {told}", source=id) from why
    names = {file.name for file in folder.iterdir() if file.is_file()}
    found = _found(names)
    missing = sorted({*_index(folder / INDEX).values()} - names) if INDEX in found else [] if found else ["weights"]
    if missing:
        raise InputError(f"{reason}, and the cache has {told} without {some(missing)}", source=id) from why
    weights_name(names, id, pickled=pickled)
    if not offline:
        logger.warning("%s: %s; the copy in the cache is used", id, reason)
    return folder


def _status(error: BaseException) -> int:
    """The status that a server answered, 0 where it did not answer."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _reason(id: str, error: BaseException, revision: str | None = None) -> str:
    """An error of huggingface_hub or of its HTTP client in a few words."""
    from huggingface_hub import constants, errors
    hub = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: agree to its terms at {hub}/{id}, then {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model at {hub}; a private or gated one needs a token: {LOG_IN}"
    if _status(error) in (401, 403):
        return f"{hub} refuses access ({_status(error)}), the token is wrong or lacks the right: {LOG_IN}"
    if _status(error):
        return f"{hub} answered {_status(error)}"
    if "Timeout" in type(error).__name__:
        return f"{hub} does not answer in time"
    return str(error).split("\n")[0] if isinstance(error, OSError) else f"no connection to {hub} ({error})"


def _found(names: Collection[str]) -> list[str]:
    """What may be weights among the names of a folder; the usual name alone where there is one."""
    usual = [name for name in (*WEIGHTS, *PICKLES) if name in names]
    return usual[:1] or sorted(name for name in names if name.endswith(PICKLED) and "/" not in name
                               and not TRAINING.match(name))


def weights_name(names: Collection[str], source: str | Path, *, pickled: bool = False) -> str:
    """Which of a folder's files are its weights: a .safetensors, the index of several, or a pickle.

    Raises:
        InputError: none; only pickles, and `pickled` is False; several pickles. `source` (an id or folder) is named.
    """
    found = _found(names)
    if not found:
        raise InputError(f"has no weights: none of {some((*WEIGHTS, *PICKLES))}", source=source)
    if found[0] not in WEIGHTS and not pickled:
        verb = f"fetch {source}" if is_id(source) else f"convert {Path(source, found[0])} OUT.safetensors"
        raise InputError(f"has no safetensors, only {some(found)}: python -m weights.{verb}", source=source)
    if len(found) > 1:
        raise InputError(f"has several files that may be its weights: {some(found)}", source=source)
    return found[0]


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, be they one file or an index and its parts.

    Raises:
        InputError: no safetensors; a damaged file; an index that names files elsewhere or missing; parts that hold
            other tensors than the index says, or one of them twice.
    """
    file = folder / weights_name({file.name for file in folder.iterdir()}, folder)
    if file.name != INDEX:
        return read_tensors(file)[0]
    index = _index(file)
    parts = sorted(set(index.values()))
    if missing := [part for part in parts if not (folder / part).is_file()]:
        raise InputError(f"names {some(missing)}, missing beside it", source=file)
    state: dict[str, Tensor] = {}
    holders: dict[str, list[str]] = {}
    for part in parts:
        tensors = read_tensors(folder / part)[0]
        state |= tensors
        for name in tensors:
            holders.setdefault(name, []).append(part)
    wrong = [f"{name} is in {' and in '.join(held)}" for name, held in holders.items() if len(held) > 1]
    wrong += [f"{name} is not in {part}" for name, part in index.items() if part not in holders.get(name, ())]
    wrong += [f"{name} of {held[0]} is not in the index" for name, held in holders.items() if name not in index]
    if wrong:
        raise InputError(f"does not fit its parts: {some(wrong)}", source=file)
    return state


def _index(file: Path) -> dict[str, str]:
    """Tensor name -> file name, of weights in several files."""
    value = read_json(file)
    index = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(part, str) for part in index.values()):
        raise InputError("is no index of weights: a weight_map of tensor name to file name is needed", source=file)
    if outside := sorted(part for part in set(index.values()) if not re.fullmatch(r"\w[\w.-]*\.safetensors", part)):
        raise InputError(f"names {some(map(repr, outside))}: a part is a .safetensors file beside it", source=file)
    return index
