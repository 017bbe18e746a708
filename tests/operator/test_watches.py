"""What the caches hold after a watch has ended: exactly what the next list has."""

import asyncio

from steerlm_operator import names
from steerlm_operator.cluster import ApiError
from steerlm_operator.watches import GONE, Watches

NAME = ("team", "p")


def job(name):
    return {"metadata": {"name": name, "namespace": "team", "uid": name, "labels": {names.PIPELINE: "p"}, "resourceVersion": "1"}}


class Cluster:
    """An API server that has two Jobs, then one: what happened between is in no watch, as after 410 Gone."""

    def __init__(self):
        self.lists = [[job("a"), job("b")], [job("b")]]

    async def pages(self, api_version, kind, namespace, selector, **_):
        yield {"metadata": {"resourceVersion": "1"}, "items": self.lists.pop(0) if kind == "Job" else []}

    async def watch(self, api_version, kind, namespace, selector, version, **_):
        if kind == "Job" and self.lists:
            raise ApiError(GONE, "too old")
        await asyncio.Event().wait()
        yield


def test_what_is_gone_when_all_is_listed_again_is_forgotten():
    seen = []

    async def run():
        forgotten = asyncio.Event()

        def changed(name):
            assert name == NAME
            seen.append({child["metadata"]["name"] for child in watches.children(name)})
            if len(seen) > 2 and seen[-1] == {"b"}:
                forgotten.set()

        watches = Watches((), changed)
        following = asyncio.create_task(watches.follow(Cluster()))
        await asyncio.wait_for(forgotten.wait(), 120)
        following.cancel()

    asyncio.run(run())
    assert seen == [{"a"}, {"a", "b"}, {"a", "b"}, {"b"}]
