"""Run in an environment with xllamacpp: ask a GGUF file what stdin says (JSON lines), and print what llama.cpp answers, one line each.

With ``--serve CLIENTS CONTEXT THREADS`` it only serves, so many clients at once with so many tokens each, until stdin ends.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import xllamacpp


def served(path: str, clients: int = 1, context: int = 512, threads: int = 1) -> xllamacpp.Server:
    """llama.cpp's server of ``path``, exact: fp32, and nothing of one request is used for the next."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.verbosity = context * clients, clients, 0
    params.use_jinja, params.warmup, params.cache_prompt = True, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def main(path: str) -> None:
    """Answer what stdin asks."""
    server = served(path)
    for line in sys.stdin:
        body = json.loads(line)
        try:
            prompt = _post(server.listening_address, "/apply-template", body)["prompt"]
            ids = _post(server.listening_address, "/tokenize", {"content": prompt, "parse_special": True})["tokens"]
            answer = _post(server.listening_address, "/v1/chat/completions", {**body, "temperature": 0})
            choice = answer["choices"][0]
            read = answer["usage"]["prompt_tokens"]
            print(
                json.dumps({"ids": ids, "read": read, "text": choice["message"]["content"], "finish": choice["finish_reason"]}), flush=True
            )
        except urllib.error.HTTPError as error:
            print(json.dumps({"error": error.read().decode()}), flush=True)


def _post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


if __name__ == "__main__":
    if sys.argv[2:3] == ["--serve"]:
        server = served(sys.argv[1], *map(int, sys.argv[3:6]))
        print(json.dumps({"url": server.listening_address}), flush=True)
        sys.stdin.read()
    else:
        main(sys.argv[1])
