"""Command line of the test cluster: ``python tests/cluster/cluster.py build | up | down | status | shell``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_cluster import binaries
from local_cluster.cluster import LocalCluster, unavailable
from local_cluster.errors import ClusterError, UnavailableError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--state", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp"), "steerlm-cluster"), help="folder of the cluster's files"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="fill the cache of programs")
    commands.add_parser("up").add_argument("--no-node", action="store_true", help="control plane only")
    commands.add_parser("down")
    commands.add_parser("status")
    commands.add_parser("shell", help="run a command inside").add_argument("argv", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        return run(options)
    except (UnavailableError, ClusterError) as error:
        print(error, file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(f"no cluster: {error.filename} is absent; start one with `up`", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    if options.command == "build":
        if reason := unavailable():
            raise UnavailableError(reason)
        print(binaries.ensure(lambda line: print(line, file=sys.stderr)).root)
    elif options.command == "up":
        binaries.ensure(lambda line: print(line, file=sys.stderr))
        cluster = LocalCluster.up(options.state, node=not options.no_node)
        print(f"export KUBECONFIG={cluster.kubeconfig}")
    elif options.command == "down":
        LocalCluster(options.state).down()
    elif options.command == "shell":
        return LocalCluster(options.state).shell(options.argv)
    else:
        for name, facts in LocalCluster(options.state).components().items():
            print(f"{name:26} pid {facts['pid']:<6} restarts {facts['restarts']} {facts['rss_kib'] // 1024:5} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
