"""The timing cache: merged, replaced as a whole, and never in the way of a build."""

from __future__ import annotations

import json
import os

import pytest

from impasto.optimize.cache import EngineCache
from impasto.optimize.tensorrt import build_engine
from impasto.optimize.timing_cache import TimingCache


@pytest.fixture
def cache(tmp_path):
    with EngineCache(tmp_path / "engines") as cache:
        yield cache


def entries(path):
    return json.loads(path.read_bytes())["entries"]


def test_what_another_process_added_meanwhile_is_kept(world, gpu, cache, make_graph):
    path = TimingCache(cache.root, world.version, gpu).path
    other = json.dumps({"version": world.version, "entries": ["theirs"]}).encode()
    world.during_build = lambda: path.write_bytes(other)
    build_engine(make_graph(), gpu, cache)
    assert entries(path) == ["Conv of small", "Mul of small", "theirs"]


@pytest.mark.parametrize("content", [b"\x00not timings", b'{"version"'])
def test_a_damaged_one_is_begun_anew_with_a_warning(world, gpu, cache, make_graph, caplog, content):
    build_engine(make_graph(name="first"), gpu, cache)
    path = TimingCache(cache.root, world.version, gpu).path
    path.write_bytes(content)
    assert build_engine(make_graph(name="second"), gpu, cache)
    assert [record.getMessage() for record in caplog.records] == [
        f"timing cache {path} is damaged or from elsewhere: begun anew"
    ]
    assert entries(path) == ["Conv of second", "Mul of second"]


def test_one_that_does_not_combine_gives_way_to_what_was_measured(world, gpu, cache, make_graph):
    world.refuses.add("combine")
    build_engine(make_graph(), gpu, cache)
    assert entries(TimingCache(cache.root, world.version, gpu).path) == ["Conv of small", "Mul of small"]


def test_what_a_killed_process_left_is_written_over_and_a_link_not_followed(world, gpu, cache, make_graph, tmp_path):
    path = TimingCache(cache.root, world.version, gpu).path
    cache.root.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path.with_suffix(".new").symlink_to(victim)
    build_engine(make_graph(), gpu, cache)
    assert victim.read_bytes() == b"mine"
    assert entries(path)
    assert not path.with_suffix(".new").exists()


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_none_is_read_or_written_where_others_can_enter(world, gpu, cache, make_graph, caplog):
    cache.root.mkdir(mode=0o700)
    cache.root.chmod(0o755)
    assert build_engine(make_graph(), gpu, cache)
    assert list(cache.root.iterdir()) == []
    assert any("timing cache not used" in record.getMessage() for record in caplog.records)


def test_engines_are_counted_without_it(world, gpu, cache, make_graph):
    build_engine(make_graph(), gpu, cache)
    assert len(cache.entries()) == 1
    cache.clear()
    assert TimingCache(cache.root, world.version, gpu).path.exists()
