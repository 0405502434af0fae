"""What listing a far target costs, counted between the service and a real S3 server."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.catalog import list_archives
from storage_backends import open_target
from tests import s3_servers
from tests.s3_proxy import S3Proxy
from tests.service_parts import Clock, Place


async def test_listing_costs_two_small_reads_for_each_new_archive_and_none_for_the_others(tmp_path: Path) -> None:
    place = Place(tmp_path, Clock(datetime.now(UTC)))
    (place.tree / "data").write_bytes(bytes(range(256)) * 40_000)
    prefix = f"s3://{s3_servers.BUCKET}/{s3_servers.new_prefix()}"
    async with place.app() as app, S3Proxy(s3_servers.ceph().endpoint) as proxy:
        names = [await place.backup(app.archives, after=timedelta(minutes=1)) for _ in range(6)]
        async with open_target(prefix, s3_servers.ceph_options(endpoint_url=proxy.endpoint)) as target:
            for name in names[:5]:
                async with open_target(f"file://{place.target}") as local:
                    await target.put(name, local.get(name))
            proxy.asked.clear()
            listed = await list_archives(target, app.archives)
            assert [entry.name for entry in listed] == names[:5]
            assert {entry.problem for entry in listed} == {None}
            assert Counter(proxy.operations) == {"ListObjectsV2": 1, "GetObject": 10}
            async with open_target(f"file://{place.target}") as local:
                await target.put(names[5], local.get(names[5]))
            proxy.asked.clear()
            assert len(await list_archives(target, app.archives)) == 6
            assert Counter(proxy.operations) == {"ListObjectsV2": 1, "GetObject": 2}
