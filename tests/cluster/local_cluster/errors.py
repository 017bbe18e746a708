"""Why a cluster cannot be had."""

from __future__ import annotations


class UnavailableError(Exception):
    """This machine cannot run the cluster: the message says what is missing. Tests skip with it."""


class ClusterError(Exception):
    """The cluster was possible here and failed. Tests fail with it."""
