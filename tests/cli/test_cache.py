"""``impasto cache``."""

from __future__ import annotations

from filelock import FileLock

from impasto.optimize.cache import EngineCache
from impasto.optimize.keys import EngineKey


def put_engine(root, graph, size):
    key = EngineKey("test", graph * 64, "", (1, 3, 20, 30), "fp32")
    EngineCache(root / "engines").get_or_build(key, lambda folder: (folder / "a.bin").write_bytes(bytes(size)) and None)


def put_weights(root, pictures):
    (root / "weights").mkdir(parents=True, exist_ok=True)
    (root / "weights" / "mine.safetensors").write_bytes(pictures.weights.read_bytes())
    (root / "weights" / "cut.pth.part").write_bytes(bytes(1000))
    (root / "weights" / "cut.pth.etag").write_bytes(b"x")


def test_an_empty_cache(run, own_cache):
    told = run("cache", "show")
    assert told.code == 0
    assert str(own_cache) in told.out
    assert "engines: 0, 0 bytes" in told.out
    assert run("cache", "clear", "--weights").out == "removed 0 engines, 0 bytes\nremoved 0 weights files, 0 bytes\n"
    assert not own_cache.exists()


def test_show_lists_engines_and_weights_apart(run, own_cache, pictures):
    put_engine(own_cache, "a", 3_000_000)
    put_engine(own_cache, "b", 5_000_000)
    put_weights(own_cache, pictures)
    out = run("cache", "show").out
    assert "1×3×20×30" in out
    assert out.count("just now") == 3
    assert "3.0 MB" in out
    assert "engines: 2, 8.0 MB of at most 4.3 GB" in out
    assert "weights: 1" in out
    assert "mine" in out


def test_clear_removes_engines_and_keeps_weights(run, own_cache, pictures):
    put_engine(own_cache, "a", 3_000_000)
    put_weights(own_cache, pictures)
    assert run("cache", "clear").out == "removed 1 engines, 3.0 MB\n"
    assert EngineCache(own_cache / "engines").entries() == ()
    assert (own_cache / "weights" / "mine.safetensors").is_file()


def test_clear_removes_weights_and_cut_downloads_when_asked(run, own_cache, pictures):
    put_weights(own_cache, pictures)
    size = pictures.weights.stat().st_size + 1001
    assert f"removed 3 weights files, {size / 1e6:.1f} MB" in run("cache", "clear", "--weights").out
    assert list((own_cache / "weights").iterdir()) == []


def test_clear_does_not_pull_a_download_from_under_another_process(run, own_cache, pictures):
    put_weights(own_cache, pictures)
    with FileLock(own_cache / "weights" / "vgg19.lock"):
        told = run("cache", "clear", "--weights")
    assert told.code == 2
    assert "'vgg19'" in told.error
    assert (own_cache / "weights" / "cut.pth.part").exists()
