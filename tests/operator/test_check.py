"""What ``helm test`` says where nothing answers; tests/cluster has the rest, on a real API server."""

import json
import os
import socket
import subprocess
import sys

import yaml


def test_without_an_api_server_each_question_has_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "STEERLM_OPERATOR_URL": url,
        "STEERLM_OPERATOR_RULES": json.dumps([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]),
    }
    done = subprocess.run([sys.executable, "-m", "steerlm_operator.check"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["FAILED"] * 4
    assert "steerlm.dev/v1alpha1 is not served" in lines[2]
    assert "does not say what the operator may do" in lines[3]
