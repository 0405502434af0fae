"""How often somebody may try: a bucket for each peer and one for all, that fill again with time."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MOST_PEERS: Final = 4096


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Rates:
    """`a_peer` and `all_peers` are failures that may come at once; a minute brings as many back."""

    def __init__(self, *, a_peer: int = 5, all_peers: int = 60) -> None:
        self._a_peer, self._all_peers = a_peer, all_peers
        self._peers: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(all_peers, 0.0)

    def wait(self, peer: str, *, now: float) -> int:
        """Return the seconds that a peer has to wait before he may try; 0 when he may."""
        mine = self._peers.get(peer)
        own = 0.0 if mine is None else self._lacking(mine, self._a_peer, now)
        return math.ceil(max(own, self._lacking(self._all, self._all_peers, now)))

    def failed(self, peer: str, *, now: float) -> None:
        """Count a try that was wrong."""
        mine = self._peers.setdefault(peer, _Bucket(self._a_peer, now))
        self._peers.move_to_end(peer)
        for bucket, most in ((mine, self._a_peer), (self._all, self._all_peers)):
            self._fill(bucket, most, now)
            bucket.left -= 1
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)

    def _lacking(self, bucket: _Bucket, most: int, now: float) -> float:
        self._fill(bucket, most, now)
        return max(0.0, (1 - bucket.left) * 60 / most)

    @staticmethod
    def _fill(bucket: _Bucket, most: int, now: float) -> None:
        bucket.left = min(most, bucket.left + (now - bucket.at) * most / 60)
        bucket.at = now
