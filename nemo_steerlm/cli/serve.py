"""``steerlm serve``."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
from pathlib import Path

import click
import msgspec
import typer

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.core.model_info import BASE_LENGTH
from nemo_steerlm.inference.ranks import rank_of
from nemo_steerlm.inference.registry import ENGINE_HELP, ENGINES, EngineOptions
from nemo_steerlm.pipeline.artifacts import WorkDirectory, served_model


def serve(
    model: Path = typer.Argument(help="An exported model folder, a .nemo file, or the work directory of a finished pipeline."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface, which wants a token."),
    port: int = typer.Option(0, min=0, max=65535, help="Port to listen on; 0 picks a free one."),
    threads: int = typer.Option(0, min=0, help="CPU threads of the engine; 0: as many as there are cores."),
    name: str = typer.Option("", help="The model's name in /v1/models; by default its folder's."),
    default: list[str] = typer.Option([], help="Attribute a request gets that does not name it, as quality=4. Repeatable."),
    max_rows: int = typer.Option(EngineOptions().max_rows, min=1, help="Rows generated, or conversations scored, at once."),
    max_model_len: str = typer.Option(
        "",
        envvar=environment.MAX_MODEL_LEN,
        show_envvar=True,
        help="Tokens of prompt and answer together, or base: all that the model has positions for; by default what it was taught.",
    ),
    cache_tokens: int = typer.Option(
        0, min=0, help="Tokens whose keys and values are kept at once; others wait. 0: as many as half of the free memory holds."
    ),
    prefix_cache: bool = typer.Option(
        True, "--prefix-cache/--no-prefix-cache", help="Keep what was read, in a quarter of --cache-tokens, for texts that begin alike."
    ),
    max_waiting: int = typer.Option(1024, min=1, help="Rows that may wait; more are answered 429."),
    max_body_mb: float = typer.Option(8.0, min=0.001, help="Largest request body, in megabytes."),
    read_timeout: float = typer.Option(60.0, min=0.1, help="Seconds in which a request's head must have come, and then its body."),
    max_connections: int = typer.Option(1000, min=1, help="Open connections; one more closes one that asks nothing."),
    request_timeout: float = typer.Option(600.0, min=0.1, help="Seconds a request may take."),
    drain_seconds: float = typer.Option(30.0, min=0.0, help="Seconds that requests in flight get after SIGTERM."),
    api_key: str = typer.Option("", envvar=environment.API_KEY, help="Bearer token that requests must bring.", show_envvar=True),
    insecure: bool = typer.Option(False, "--insecure", help="Listen for other machines without a token; the log says so."),
    cors_origin: list[str] = typer.Option([], help="Origin whose pages may call this server. Repeatable."),
    log_prompts: bool = typer.Option(False, "--log-prompts", help="Write request bodies to the log."),
    device: str = typer.Option("", help="cpu, cuda or cuda:1; by default cuda where there is one."),
    engine: str = typer.Option(next(iter(ENGINES)), click_type=click.Choice(list(ENGINES)), help=ENGINE_HELP),
    tensor_parallel: int = typer.Option(1, min=1, help="Processes that each layer of a .nemo is spread over, one a device."),
    pipeline_parallel: int = typer.Option(1, min=1, help="Processes that a .nemo's layers are spread over, times --tensor-parallel."),
    upstream: str = typer.Option("", help="http://HOST:PORT of the server that has the weights, for --engine openai."),
    upstream_wait: float = typer.Option(0.0, min=0.0, help="Seconds until that server must answer; it may still be loading."),
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
    folder = served_model(model)
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from nemo_steerlm.serving.server import listen
    from nemo_steerlm.serving.service import Settings
    from nemo_steerlm.serving.startup import local_model, reader_adder, remote_model, run_server
    from nemo_steerlm.serving.vllm import vllm_command, vllm_server

    settings = Settings(
        name=name or model.resolve().stem,
        defaults=Label.from_options(default),
        max_body_bytes=int(max_body_mb * (1 << 20)),
        request_timeout=request_timeout,
        read_timeout=read_timeout,
        max_connections=max_connections,
        api_key=api_key.strip() or None,
        cors_origins=tuple(cors_origin),
        log_prompts=log_prompts,
    )
    length = model_length(max_model_len)
    command = []
    if engine == "vllm":
        command = vllm_command(folder, program=vllm, device=device, max_model_len=length, more=shlex.split(vllm_options))
    if print_command and command:
        print(shlex.join([*command, "--port", "PORT"]))
        return
    options = EngineOptions(
        max_rows=max_rows,
        max_model_len=length,
        cache_tokens=cache_tokens or None,
        prefix_cache=prefix_cache,
        device=device or None,
        tensor=tensor_parallel,
        pipeline=pipeline_parallel,
        devices=tensor_parallel * pipeline_parallel,
    )
    if rank_of(os.environ, devices=options.devices, nodes=options.nodes):
        local_model(folder, options, engine=engine)  # follows rank 0 and does not return
        return
    add_reader = None
    if page or reader:
        beside = WorkDirectory(model).model("value") if folder != model else None
        alone = msgspec.structs.replace(options, tensor=1, pipeline=1, devices=1)
        add_reader = reader_adder(reader, reader_api_key, beside, alone, engine="embedded" if ENGINES[engine].remote else engine)
    listener = listen(host, port, settings.api_key, insecure=insecure)
    with contextlib.ExitStack() as stack:
        if ENGINES[engine].remote:
            url = stack.enter_context(vllm_server(command)) if command else upstream
            connect = functools.partial(remote_model, folder, url, patience=upstream_wait)
            load = functools.partial(connect, max_waiting=max_waiting, max_model_len=length)
        else:
            load = functools.partial(local_model, folder, options, engine=engine, max_waiting=max_waiting)
        run_server(load, settings, listener, drain_seconds=drain_seconds, prepare=add_reader, page=page)


def model_length(text: str) -> int | None:
    """What ``--max-model-len`` says, as ``ModelInfo.served_length`` takes it. Raises UsageError."""
    if text in ("", "base"):
        return BASE_LENGTH if text else None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--max-model-len {text}: write a number of tokens, or base")
    return int(text)
