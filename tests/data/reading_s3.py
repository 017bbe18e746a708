"""Run in an environment with s3fs and moto: what is read out of moto's server, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import botocore.session

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.data.packages import local_path


def refused(reference: str, cache: Path) -> str:
    try:
        return str(local_path(reference, cache=cache))
    except SteerLMError as error:
        return f"{type(error).__name__}: {error}"


def main(cache: Path) -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "Running on" in line)
        os.environ["AWS_ENDPOINT_URL"] = line.split()[-1]
        s3 = botocore.session.get_session().create_client("s3")
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="records.jsonl", Body=b"one\n")
        s3.put_object(Bucket="bucket", Key="models/base/", Body=b"")  # as the store's console makes a folder
        for name in ("config.json", "model.safetensors"):
            s3.put_object(Bucket="bucket", Key=f"models/base/{name}", Body=b"{}")
        found: dict[str, object] = {"file": local_path("s3://bucket/records.jsonl", cache=cache).read_text()}
        s3.put_object(Bucket="bucket", Key="records.jsonl", Body=b"two\n")
        found["changed"] = local_path("s3://bucket/records.jsonl", cache=cache).read_text()
        found["folder"] = sorted(path.name for path in local_path("s3://bucket/models/base", cache=cache).iterdir())
        found["no object"] = refused("s3://bucket/nothing", cache)
        found["no bucket"] = refused("s3://nobody/records.jsonl", cache)
    finally:
        server.kill()
        server.wait()
    found["no server"] = refused("s3://bucket/elsewhere", cache).partition(":")[0]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
