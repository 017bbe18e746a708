"""``steerlm serve``."""

from __future__ import annotations

import enum
import importlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.megatron.imports import lean_imports
from nemo_steerlm.pipeline.artifacts import WorkDirectory

if TYPE_CHECKING:
    import socket

    from nemo_steerlm.inference.engine import Engine
    from nemo_steerlm.serving.model import Model
    from nemo_steerlm.serving.service import Service, Settings

logger = logging.getLogger(__name__)


class EngineChoice(str, enum.Enum):
    """What has the weights."""

    EMBEDDED = "embedded"
    OPENVINO = "openvino"
    VLLM = "vllm"
    OPENAI = "openai"


def serve(
    model: Path = typer.Argument(help="An exported model folder, a .nemo file, or the work directory of a finished pipeline."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface, which wants a token."),
    port: int = typer.Option(0, min=0, max=65535, help="Port to listen on; 0 picks a free one."),
    threads: int = typer.Option(0, min=0, help="CPU threads of the engine; 0: as many as there are cores."),
    name: str = typer.Option("", help="The model's name in /v1/models; by default its folder's."),
    default: list[str] = typer.Option([], help="Attribute a request gets that does not name it, as quality=4. Repeatable."),
    max_rows: int = typer.Option(32, min=1, help="Rows generated, or conversations scored, at once."),
    max_waiting: int = typer.Option(1024, min=1, help="Rows that may wait; more are answered 429."),
    max_body_mb: float = typer.Option(8.0, min=0.001, help="Largest request body, in megabytes."),
    request_timeout: float = typer.Option(600.0, min=0.1, help="Seconds a request may take."),
    drain_seconds: float = typer.Option(30.0, min=0.0, help="Seconds that requests in flight get after SIGTERM."),
    api_key: str = typer.Option("", envvar=environment.API_KEY, help="Bearer token that requests must bring.", show_envvar=True),
    insecure: bool = typer.Option(False, "--insecure", help="Listen for other machines without a token; the log says so."),
    cors_origin: list[str] = typer.Option([], help="Origin whose pages may call this server. Repeatable."),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Write request bodies to the log."),
    device: str = typer.Option("", help="cpu, cuda or cuda:1; by default cuda where there is one."),
    engine: EngineChoice = typer.Option(
        EngineChoice.EMBEDDED, help="embedded; openvino: its layers on CPUs; vllm: started by this command; openai: at --upstream."
    ),
    upstream: str = typer.Option("", help="http://HOST:PORT of the server that has the weights, for --engine openai."),
    vllm: str = typer.Option("vllm", envvar=environment.VLLM, help="The vllm program, or the Python of its environment."),
    vllm_options: str = typer.Option("", help="More options for vllm serve, in quotes."),
    print_command: bool = typer.Option(False, "--print-command", help="Print the vllm command that --engine vllm would run, and end."),
    page: bool = typer.Option(True, "--page/--no-page", help="Have a page to chat, compare and read on, at /."),
    reader: str = typer.Option(
        "",
        help="What reads texts for a steer model: a value model's folder or its server's URL; by default the work directory's, if it fits.",
    ),
    reader_api_key: str = typer.Option("", envvar=environment.READER_API_KEY, help="Token of the reader's server.", show_envvar=True),
) -> None:
    """Serve a model over HTTP: attribute scoring, OpenAI's API with attributes, and NeMo's PUT /generate."""
    folder = model_path(model)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from nemo_steerlm.serving.service import Settings

    settings = Settings(
        name=name or model.resolve().stem,
        defaults=Label.from_options(default),
        max_body_bytes=int(max_body_mb * (1 << 20)),
        request_timeout=request_timeout,
        api_key=api_key.strip() or None,
        cors_origins=tuple(cors_origin),
        log_prompts=log_prompts,
    )

    if print_command and engine is EngineChoice.VLLM:
        print(shlex.join([*_vllm_command(folder, vllm, device, vllm_options), "--port", "PORT"]))
        return
    openvino = engine is EngineChoice.OPENVINO
    add_reader = _reader(model, reader, reader_api_key, max_rows=max_rows, device=device, openvino=openvino) if page or reader else None
    listener = listen(host, port, settings.api_key, insecure=insecure)
    if openvino or engine is EngineChoice.EMBEDDED:

        def load() -> Model:
            return scheduled(load_engine(folder, max_rows=max_rows, device=device or None, openvino=openvino), max_waiting)

        run_server(load, settings, listener, drain_seconds, add_reader, page=page)
    elif engine is EngineChoice.OPENAI:
        run_server(lambda: elsewhere(folder, upstream, max_waiting), settings, listener, drain_seconds, add_reader, page=page)
    else:
        from nemo_steerlm.serving.vllm import vllm_server

        with vllm_server(_vllm_command(folder, vllm, device, vllm_options)) as url:
            run_server(lambda: elsewhere(folder, url, max_waiting), settings, listener, drain_seconds, add_reader, page=page)


def _vllm_command(folder: Path, program: str, device: str, options: str) -> list[str]:
    from nemo_steerlm.serving.vllm import vllm_command

    return vllm_command(folder, program=program, device=device, more=shlex.split(options))


def _reader(model: Path, reader: str, reader_api_key: str, *, max_rows: int, device: str, openvino: bool) -> Callable[[Service], None]:
    """What gives a service, once its model is loaded, something that reads for it. Raises UsageError for a reader there is not."""
    from nemo_steerlm.serving.remote_reader import RemoteReader

    remote = RemoteReader(reader, api_key=reader_api_key or None) if reader.startswith(("http://", "https://")) else None
    beside = None if remote else _reader_folder(model, reader)

    def add(service: Service) -> None:
        from nemo_steerlm.serving.service import Service

        if service.scores:
            return
        if remote:
            service.remote_reader = remote
        elif beside and (reader or _fits(beside, device)):
            value = scheduled(load_engine(beside, max_rows=max_rows, device=device or None, openvino=openvino), 1024)
            named = msgspec.structs.replace(service.settings, name=f"{service.settings.name}-reader", defaults=Label())
            service.reader = Service(value, named)
            if not service.reader.scores:
                raise UsageError(f"--reader {beside}: this is a steer model, it writes; give a value model")

    return add


def serve_with_nemo_flags(arguments: list[str]) -> None:
    """What ``examples/megatron_gpt_eval.py`` does: NeMo's ``key=value`` flags, this project's server.

    Raises UsageError for an unknown flag, ConfigError where the parallel sizes do not fit the devices.
    """
    from nemo_steerlm.cli.nemo_flags import read_flags
    from nemo_steerlm.inference.ranks import rank_of
    from nemo_steerlm.serving.service import Settings

    flags = read_flags(arguments)
    folder = model_path(Path(str(flags["gpt_model_file"])))
    sizes = {
        "tensor": flags["tensor_model_parallel_size"],
        "pipeline": flags["pipeline_model_parallel_size"],
        "devices": flags["trainer.devices"],
        "nodes": flags["trainer.num_nodes"],
    }
    device = "cpu" if flags["trainer.accelerator"] == "cpu" else None

    def load() -> Model:
        return scheduled(load_engine(folder, max_rows=32, device=device, **sizes), 1024)

    if rank_of(os.environ, devices=sizes["devices"], nodes=sizes["nodes"]):
        load()  # follows rank 0, and ends with it
    else:
        api_key = os.environ.get(environment.API_KEY, "").strip() or None
        host = str(flags["host"] or ("0.0.0.0" if api_key or flags["insecure"] else "127.0.0.1"))  # noqa: S104
        listener = listen(host, flags["port"], api_key, insecure=flags["insecure"])
        run_server(load, Settings(name=folder.stem, api_key=api_key), listener, 30.0)


def listen(host: str, port: int, api_key: str | None, *, insecure: bool) -> socket.socket:
    """Open the log and take the address. Raises UsageError where it cannot be had, or is open to other machines without a token."""
    from nemo_steerlm.serving.server import bind, require_token

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    for ours in ("nemo_steerlm", "uvicorn"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger().handlers[0].setFormatter(JSONLines())
    logging.captureWarnings(True)  # libraries' warnings too: each line of the log is JSON
    listener = bind(host, port)
    require_token(listener, api_key, insecure=insecure)
    return listener


def run_server(
    load: Callable[[], Model],
    settings: Settings,
    listener: socket.socket,
    drain_seconds: float,
    prepare: Callable[[Service], None] | None = None,
    *,
    page: bool = False,
) -> None:
    """Load the model, ``prepare`` its service, and serve it until SIGTERM."""
    from nemo_steerlm.serving.server import serve as serve_forever
    from nemo_steerlm.serving.service import Service

    if sys.stderr.isatty():
        print(f"Loading {settings.name} ...", file=sys.stderr)
    service = Service(load(), settings)
    if prepare:
        prepare(service)
    serve_forever(service, listener, page=page, drain_seconds=drain_seconds)


class JSONLines(logging.Formatter):
    """One JSON object a line; what is JSON already (the request log) stays as it is."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        message = record.getMessage()
        if record.name == "nemo_steerlm.serving.access":
            return message
        entry = {"event": "log", "level": record.levelname.lower(), "logger": record.name, "message": message}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def model_path(given: Path) -> Path:
    """What to serve: ``given``, or the last steer model of the pipeline work directory that it is. Raises UsageError."""
    if not given.exists():
        raise UsageError(f"{given}: no such file or folder")
    work = WorkDirectory(given)
    if steer := work.model("steer"):
        return steer
    if value := work.model("value"):
        raise UsageError(f"{given}: the pipeline has no steer model yet; run it to its end, or serve {value}")
    return given


def _reader_folder(given: Path, reader: str) -> Path | None:
    """The value model to load beside the steer model: the one asked for, else that of a work directory. Raises UsageError."""
    if reader:
        if not Path(reader).exists():
            raise UsageError(f"--reader {reader}: no such folder; give a value model's folder, or http://HOST:PORT of its server")
        return Path(reader)
    return WorkDirectory(given).model("value") if model_path(given) != given else None


def _fits(folder: Path, device: str) -> bool:
    """Whether there is memory for a second model that nobody asked for by name; says so where there is not."""
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = importlib.import_module("nemo_steerlm.inference.memory").free_bytes(device or None)
    if needed <= free:
        return True
    sizes = f"{needed / 1e9:.1f} GB wanted, {free / 1e9:.1f} free"
    logger.warning("the page does not read: no room for %s as well (%s); serve it elsewhere and give its URL as --reader", folder, sizes)
    return False


def load_engine(path: Path, *, max_rows: int, device: str | None, openvino: bool = False, **sizes: int) -> Engine:
    """The engine for a model folder or a ``.nemo`` file; ``sizes`` are ``load_megatron_engine``'s.

    Raises ConfigError where the extra that the engine needs is not installed, or a folder is to be spread over several processes,
    UsageError for what OpenVINO has no layers for.
    """
    nemo = path.suffix == ".nemo"
    if openvino and (nemo or (device or "cpu") != "cpu"):
        instead = f"steerlm convert {path} FOLDER makes one" if nemo else "leave --device out"
        raise UsageError(f"{path}: --engine openvino serves exported model folders on CPUs; {instead}")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # NeMo asks torch, not us
    if nemo:
        module, extra = "inference.megatron_engine", "nemo"
    elif openvino:
        module, extra = "inference.openvino", "serve,openvino"
    else:
        module, extra = "inference.huggingface", "serve"
    try:
        # By name: the engines' libraries are heavy, and some may be absent.
        with lean_imports("transformers"):
            engines: Any = importlib.import_module(f"nemo_steerlm.{module}")
    except ImportError as error:
        raise ConfigError(f"{path}: serving it needs nemo_steerlm[{extra}] ({error})") from error
    engine: Engine
    if nemo:
        engine = engines.load_megatron_engine(path, max_rows=max_rows, device=device, **sizes)
    elif openvino:
        engine = engines.OpenVINOEngine(path, max_rows=max_rows)
    else:
        if any(size > 1 for size in sizes.values()):
            raise ConfigError(f"{path}: a model folder is served by one process; give the .nemo for tensor and pipeline parallelism")
        engine = engines.HuggingFaceEngine(path, device=device, max_rows=max_rows)
    return engine


def scheduled(engine: Engine, max_waiting: int) -> Model:
    """``engine`` with a queue in front of it."""
    from nemo_steerlm.serving.scheduler import Scheduler

    return Scheduler(engine, max_waiting=max_waiting)


def elsewhere(folder: Path, url: str, max_waiting: int) -> Model:
    """The model at ``folder``, its weights served at ``url``. The key of that server is in STEERLM_UPSTREAM_KEY."""
    from nemo_steerlm.serving.upstream import Upstream

    if not url:
        raise UsageError("--engine openai needs --upstream http://HOST:PORT")
    return Upstream(folder, url, api_key=os.environ.get(environment.UPSTREAM_KEY), max_waiting=max_waiting)
