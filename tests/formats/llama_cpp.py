"""Run in an environment with xllamacpp: ask a GGUF file what stdin says (JSON lines), and print what llama.cpp answers, one line each."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import xllamacpp


def main(path: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 0
    params.use_jinja, params.warmup = True, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
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
    main(sys.argv[1])
