"""``python -m steerlm_operator``: run the operator."""

from __future__ import annotations

import logging
import os
import socket

import kopf

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import ConfigError
from steerlm_operator import config as configs
from steerlm_operator import handlers


def main() -> None:
    """Run until SIGTERM. Exits 78 where the configuration is wrong."""
    try:
        config = configs.load()
    except ConfigError as error:
        raise SystemExit(_report(error)) from error
    as_json = os.environ.get(environment.LOG_FORMAT) == "json"
    kopf.configure(log_format=kopf.LogFormat.JSON if as_json else kopf.LogFormat.FULL)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it tells of every event of every object
    kopf.run(
        registry=handlers.registry(config),
        standalone=True,  # one replica, strategy Recreate: no peering objects
        # kopf would make one of the user's name, which the image's user does not have, and die of it.
        identity=socket.gethostname(),  # type: ignore[arg-type]  # a NewType that kopf does not export
        clusterwide=not config.namespaces,
        namespaces=config.namespaces,
    )


def _report(error: ConfigError) -> int:
    print(f"steerlm-operator: {error}")  # noqa: T201 - there is no logging yet
    return error.exit_code


if __name__ == "__main__":
    main()
