"""What is free is the least of what machine, container and process allow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from impasto.runtime.memory import Free, free_memory

GB = 10**9


@pytest.fixture
def system(tmp_path: Path):
    """Write files of /proc and /sys into a folder, and ask what is free there."""

    def ask(files: dict[str, str]) -> Free:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return free_memory(tmp_path)

    return ask


def meminfo(available: int) -> str:
    return f"MemTotal:       99999999 kB\nMemFree:   1 kB\nMemAvailable:   {available // 1024} kB\n"


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that tests run on allows to a process."""
    if sys.platform != "win32":
        import resource

        infinity = resource.RLIM_INFINITY
        monkeypatch.setattr(resource, "getrlimit", lambda _: (infinity, infinity))


def test_without_a_container_it_is_the_machines(system) -> None:
    free = system({"proc/meminfo": meminfo(1024 * 4_000_000)})
    assert free.bytes == 1024 * 4_000_000
    assert "machine" in free.source


def test_nothing_known_is_said_so(system) -> None:
    assert system({}) == Free(None, "this system does not tell")


@pytest.mark.parametrize("group", ["/", "/user.slice/job", "/not/visible/inside"])
def test_a_cgroup_of_version_2_counts_its_file_cache_as_free(system, group: str) -> None:
    files = {
        "proc/meminfo": meminfo(50 * GB),
        "proc/self/cgroup": f"0::{group}\n",
        "sys/fs/cgroup/memory.max": f"{2 * GB}\n",
        "sys/fs/cgroup/memory.current": f"{GB + 300}\n",
        "sys/fs/cgroup/memory.stat": "anon 5\nfile 900\ninactive_file 200\nactive_file 700\n",
    }
    free = system(files)
    assert free.bytes == 2 * GB - (GB + 300) + 200
    assert "container" in free.source


def test_of_nested_cgroups_the_tightest_holds(system) -> None:
    files = {"proc/meminfo": meminfo(50 * GB), "proc/self/cgroup": "0::/a/b\n"}
    for folder, limit, usage in (("a", "3000", 2500), ("a/b", "9000", 400), ("", "max", 7)):
        files[f"sys/fs/cgroup/{folder}/memory.max"] = limit
        files[f"sys/fs/cgroup/{folder}/memory.current"] = str(usage)
    assert system(files).bytes == 500


def test_a_cgroup_of_version_1(system) -> None:
    files = {
        "proc/meminfo": meminfo(50 * GB),
        "proc/self/cgroup": "12:cpu,cpuacct:/x\n5:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{GB}\n",
        "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/docker/abc/memory.stat": "total_inactive_file 300\ninactive_file 1\n",
        # 2⁶³ rounded down to a page: no limit.
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert system(files).bytes == GB - 1000 + 300


def test_a_cgroup_above_its_limit_leaves_nothing(system) -> None:
    files = {
        "proc/meminfo": meminfo(50 * GB),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1000",
        "sys/fs/cgroup/memory.current": "1500",
    }
    assert system(files).bytes == 0


def test_the_machine_can_have_less_than_the_container_allows(system) -> None:
    files = {
        "proc/meminfo": meminfo(1024 * 1000),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{9 * GB}",
        "sys/fs/cgroup/memory.current": "0",
    }
    assert system(files).bytes == 1024 * 1000


@pytest.mark.skipif(sys.platform == "win32", reason="has no address-space limit")
def test_a_limit_on_the_address_space_counts_what_is_taken(system, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 * GB, 6 * GB))
    files = {"proc/meminfo": meminfo(50 * GB), "proc/self/status": "VmPeak:\t 9 kB\nVmSize:\t 1000000 kB\n"}
    free = system(files)
    assert free.bytes == 5 * GB - 1_000_000 * 1024
    assert "ulimit" in free.source


@pytest.mark.parametrize("text", ["", "garbage", "0::", "\x00\xff"])
def test_files_that_make_no_sense_are_no_limit(system, text: str) -> None:
    files = {"proc/meminfo": meminfo(1024 * 7), "proc/self/cgroup": text, "sys/fs/cgroup/memory.max": text}
    assert system(files).bytes == 1024 * 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_here_it_is_less_than_all_there_is() -> None:
    free = free_memory().bytes
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) * 1024
    assert free is not None
    assert 0 < free < total
