"""The tiny models of the serving tests, served for the clients."""

from tests.serving.conftest import steer_folder, steer_server, value_folder, value_server

__all__ = ["steer_folder", "steer_server", "value_folder", "value_server"]
