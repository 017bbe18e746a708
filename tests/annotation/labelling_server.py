"""A real HTTP server that labels by a rule instead of a model: the value of an attribute follows from the text alone.

Both protocols: ``POST /v1/attributes`` (with ``--scores``) and upstream's ``PUT /generate``. Whoever knows the text knows the labels.
Run as a script it serves on ``--port`` (0: any free one) and prints its address as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nemo_steerlm.core.attributes import PRESETS, AttributeSchema, preset
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.model_info import ModelInfo


def value_of(name: str, text: str, high: int) -> int:
    return zlib.crc32(f"{name}|{text}".encode()) % (high + 1)


def label_of(text: str, schema: AttributeSchema) -> str:
    values = {a.name: value_of(a.name, text, a.high) for a in schema.attributes}
    return schema.encode(values, "en" if schema.languages else None)


def model_info(layout: str = "nemo-sft", schema: str = "helpsteer") -> ModelInfo:
    return ModelInfo(kind="value", attributes=preset(schema), layout=layout, fingerprint=f"sha256:{layout}-{schema}")  # type: ignore[arg-type]


def attributes_answer(body: dict, info: ModelInfo) -> dict:
    results = []
    for record in body["conversations"]:
        conversation = Conversation.from_record(record)
        turns = []
        for index, turn in enumerate(conversation.turns):
            if body["turns"] == "unmasked" and turn.speaker == conversation.mask:
                continue
            assert turn.label is None, "a human label reached the server"
            attributes = {}
            for a in info.attributes.attributes:
                value = value_of(a.name, turn.text, a.high)
                odds = {str(v): 0.6 if v == value else 0.4 / a.high for v in a.values}
                attributes[a.name] = {"value": value, "expected": float(value), "probabilities": odds}
            found = {"index": index, "label": label_of(turn.text, info.attributes), "attributes": attributes}
            if info.attributes.languages:
                found["lang"] = {"value": "en", "probabilities": {"en": 0.9}}
            turns.append(found)
        results.append({"turns": turns})
    return {"model": info.fingerprint, "object": "list", "results": results}


LAST_TURN = re.compile(r"<extra_id_1>[^\n]*\n((?:(?!<extra_id_1>).)*)\n<extra_id_2>[^\n]*?(\w+):$", re.DOTALL)


def generate_answer(body: dict) -> dict:
    sentences = []
    for prompt in body["sentences"]:
        text, name = LAST_TURN.search(prompt).groups()  # type: ignore[union-attr]
        sentences.append(prompt + ("en" if name == "lang" else str(value_of(name, text, 4))))
    return {"sentences": sentences, "tokens": [], "logprob": None, "token_ids": [], "offsets": []}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    info: ModelInfo | None = None
    scores = False

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.info:
            metadata = {"steerlm": self.info.to_dict(), "scores": self.scores}
            self.answer(200, {"object": "list", "data": [{"id": "m", "object": "model", "metadata": metadata}]})
        else:
            self.answer(404, {"message": "Not Found"})

    def do_OPTIONS(self) -> None:
        self.answer(200 if self.path == "/generate" else 404, {})

    def do_POST(self) -> None:
        self.work("/v1/attributes" if self.scores else None, lambda body: attributes_answer(body, self.info))  # type: ignore[arg-type]

    def do_PUT(self) -> None:
        self.work("/generate", generate_answer)

    def work(self, path, answer) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != path:
            return self.answer(404, {"message": "Not Found"})
        status, reply = self.reply(body, answer)
        return self.answer(status, reply)

    def reply(self, body, answer):
        """Overridden where a test wants a fault."""
        return 200, answer(body)

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


class Poisoned(Handler):
    """Cannot answer requests with question 3 or 17 in them."""

    status = 500

    def reply(self, body, answer):
        said = json.dumps(body)
        poisoned = "answer 3." in said or "answer 17." in said
        return (self.status, {"error": {"code": "data", "message": "too long"}}) if poisoned else (200, answer(body))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that are killed are part of the tests."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--foreign", action="store_true", help="announce nothing, as upstream's server")
    parser.add_argument("--schema", default="helpsteer", choices=list(PRESETS))
    parser.add_argument("--layout", default="nemo-sft")
    options = parser.parse_args()
    Handler.info = None if options.foreign else model_info(options.layout, options.schema)
    Handler.scores = options.scores
    server = Server(("127.0.0.1", options.port), Handler)
    print(json.dumps({"steerlm": "serving", "url": f"http://127.0.0.1:{server.server_port}"}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
