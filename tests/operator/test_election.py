"""At most one of several operators leads, whichever of them dies, sleeps or is cut off: on clocks that the test moves."""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steerlm_operator.cluster import ApiError
from steerlm_operator.election import LEASE_SECONDS, RENEW_SECONDS, Election


class Leases:
    """An API server with one Lease."""

    def __init__(self):
        self.versions = itertools.count(1)
        self.lease = None
        self.unreachable = set()

    async def create(self, wanted):
        if self.lease:
            raise ApiError(409, "exists")
        return self._store(wanted)

    async def replace(self, wanted):
        if wanted["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "modified")
        return self._store(wanted)

    def _store(self, wanted):
        self.lease = copy.deepcopy(wanted)
        self.lease["metadata"]["resourceVersion"] = str(next(self.versions))
        return copy.deepcopy(self.lease)

    def seen_by(self, identity):
        return View(self, identity)


class View:
    """The API server as one candidate reaches it, or does not."""

    def __init__(self, leases, identity):
        self.leases, self.identity = leases, identity

    async def get(self, *_):
        self._check()
        return copy.deepcopy(self.leases.lease)

    async def create(self, wanted):
        self._check()
        return await self.leases.create(wanted)

    async def replace(self, wanted):
        self._check()
        return await self.leases.replace(wanted)

    def _check(self):
        if self.identity in self.leases.unreachable:
            raise ApiError(0, "unreachable")


class Time:
    """Seconds that pass only when everybody sleeps."""

    def __init__(self):
        self.now, self.waiting, self.order = 0.0, [], itertools.count()

    async def sleep(self, seconds):
        due = asyncio.get_running_loop().create_future()
        heapq.heappush(self.waiting, (self.now + seconds, next(self.order), due))
        await due

    async def advance(self, seconds):
        end = self.now + seconds
        for _ in range(20):
            await asyncio.sleep(0)
        while self.waiting and self.waiting[0][0] <= end:
            self.now, _, due = heapq.heappop(self.waiting)
            if not due.cancelled():
                due.set_result(None)
            for _ in range(20):
                await asyncio.sleep(0)
        self.now = end


class Candidate:
    def __init__(self, leases, time, identity, leading):
        self.election = Election(leases.seen_by(identity), "ns", "l", identity, clock=lambda: time.now, sleep=time.sleep)
        self.identity, self.leading = identity, leading
        self.task = asyncio.get_running_loop().create_task(self.live())

    async def live(self):
        while True:
            await self.election.win()
            self.leading.add(self.identity)
            assert len(self.leading) == 1, self.leading
            try:
                await self.election.hold()
            finally:
                self.leading.discard(self.identity)


def run(scenario):
    async def go():
        leases, time, leading = Leases(), Time(), set()
        made = [Candidate(leases, time, name, leading) for name in ("a", "b")]
        await time.advance(5)
        await scenario(leases, time, leading, made)
        for each in made:
            each.task.cancel()
        errors = await asyncio.gather(*(each.task for each in made), return_exceptions=True)
        assert not [error for error in errors if not isinstance(error, asyncio.CancelledError)]

    asyncio.run(go())


def test_the_other_takes_over_when_the_leader_is_killed_and_not_before():
    async def scenario(leases, time, leading, made):
        (first,) = leading
        await time.advance(300)
        assert leading == {first}
        next(each for each in made if each.identity == first).task.cancel()
        await time.advance(LEASE_SECONDS - 3)
        assert not leading
        await time.advance(10)
        assert leading == {"a", "b"} - {first}
        assert leases.lease["spec"]["leaseTransitions"] == 1

    run(scenario)


def test_a_leader_that_is_cut_off_stops_before_the_other_starts():
    async def scenario(leases, time, leading, made):
        (first,) = leading
        leases.unreachable = {first}
        await time.advance(RENEW_SECONDS + 3)
        assert not leading
        await time.advance(LEASE_SECONDS)
        assert leading == {"a", "b"} - {first}

    run(scenario)


def test_a_leader_that_ends_in_order_hands_over_at_once():
    async def scenario(leases, time, leading, made):
        leader = next(each for each in made if {each.identity} == leading)
        leader.task.cancel()
        await asyncio.gather(leader.task, return_exceptions=True)
        await leader.election.release()
        await time.advance(5)
        assert leading == {"a", "b"} - {leader.identity}

    run(scenario)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from("ab")), st.floats(0.5, 40)), max_size=12))
def test_there_are_never_two(cuts):
    """``Candidate`` asserts it each time it begins to lead."""

    async def scenario(leases, time, leading, made):
        for cut, seconds in cuts:
            leases.unreachable = cut
            await time.advance(seconds)
        leases.unreachable = set()
        await time.advance(3 * LEASE_SECONDS)
        assert len(leading) == 1

    run(scenario)


def test_a_candidate_without_rights_waits():
    async def go():
        leases, time, leading = Leases(), Time(), set()
        leases.unreachable = {"a"}
        candidate = Candidate(leases, time, "a", leading)
        await time.advance(100)
        candidate.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await candidate.task
        assert not leading

    asyncio.run(go())
