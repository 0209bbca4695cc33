import hashlib
import json
import os
import random
import string
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impasto.errors import EngineError
from impasto.optimize.keys import EngineKey, _cpuinfo, cpu

FIELDS = {
    "kind": "onnxruntime",
    "graph": "ab" * 32,
    "weights": "cd" * 32,
    "shape": (1, 3, 512, 384),
    "precision": "fp32",
    "options": {"threads": "2", "level": "all"},
    "versions": {"onnxruntime": "1.31.1", "impasto": "0.1.0"},
    "machine": {"model": "Zen 5", "features": "avx2 fma"},
}
DIFFERENT = {
    "kind": ["tensorrt"],
    "graph": ["ab" * 31 + "ac"],
    "weights": ["cd" * 31 + "ce", ""],
    "shape": [(1, 3, 384, 512), (1, 3, 512, 385), ()],
    "precision": ["fp16"],
    "options": [{"threads": "3", "level": "all"}, {"threads": "2"}, {}],
    "versions": [{"onnxruntime": "1.31.2", "impasto": "0.1.0"}],
    "machine": [{"model": "Zen 5", "features": "avx2"}, {"model": "Zen 4", "features": "avx2 fma"}],
}
CHANGES = [(name, value) for name, values in DIFFERENT.items() for value in values]

names = st.text(string.ascii_letters + "_.é", min_size=1, max_size=12)
mappings = st.dictionaries(names, st.text(max_size=12), max_size=4)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
keys = st.builds(
    EngineKey,
    kind=names,
    graph=digests,
    weights=digests | st.just(""),
    shape=st.lists(st.integers(1, 1 << 20), max_size=5).map(tuple),
    precision=names,
    options=mappings,
    versions=mappings,
    machine=mappings,
)


def test_the_digest_is_frozen():
    # Written out by hand: a change here makes every user's engines misses, and calls for a new FORMAT.
    text = (
        '{"format":1,"graph":"'
        + "ab" * 32
        + '","kind":"onnxruntime","machine":{"features":"avx2 fma","model":"Zen 5"},'
        '"options":{"level":"all","threads":"2"},"precision":"fp32","shape":[1,3,512,384],'
        '"versions":{"impasto":"0.1.0","onnxruntime":"1.31.1"},"weights":"' + "cd" * 32 + '"}'
    )
    assert EngineKey(**FIELDS).digest == hashlib.sha256(text.encode()).hexdigest()
    assert EngineKey(**FIELDS).digest == "e1cbc4a234910f03c9375ef79269b247f013670a8a869fd18c089ff3a046d745"


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_every_field_is_part_of_the_digest(name, value):
    assert EngineKey(**FIELDS | {name: value}).digest != EngineKey(**FIELDS).digest
    assert EngineKey(**FIELDS | {name: value}) != EngineKey(**FIELDS)


def test_the_changes_above_cover_every_field():
    assert set(DIFFERENT) == set(EngineKey.__dataclass_fields__)


@given(keys)
def test_a_key_survives_json(key):
    again = EngineKey.from_json(json.loads(json.dumps(key.to_json())))
    assert again == key
    assert again.digest == key.digest
    assert hash(again) == hash(key)


@given(keys, st.randoms(use_true_random=False))
def test_the_order_of_options_is_no_difference(key, shuffle):
    pairs = list(key.options.items())
    shuffle.shuffle(pairs)
    fields = {name: getattr(key, name) for name in FIELDS}
    assert EngineKey(**fields | {"options": dict(pairs)}).digest == key.digest


def test_a_key_keeps_its_own_copies():
    options = {"threads": "2"}
    key = EngineKey(**FIELDS | {"options": options, "shape": np.array([1, 3, 8, 8])})
    before = key.digest
    options["threads"] = "3"
    assert key.digest == before
    assert key == EngineKey(**FIELDS | {"options": {"threads": "2"}, "shape": (1, 3, 8, 8)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", ""),
        ("precision", None),
        ("graph", "ab" * 31),
        ("graph", "AB" * 32),
        ("graph", ""),
        ("weights", "../" + "a" * 61),
        ("shape", (1, 3, 0, 8)),
        ("shape", (1, 3, -1, -1)),
        ("shape", (1, 3, 8.5, 8)),
        ("shape", None),
        ("options", {"threads": 2}),
        ("versions", [("onnxruntime", "1")]),
        ("machine", {1: "a"}),
    ],
)
def test_a_key_of_another_form_is_refused(name, value):
    with pytest.raises(EngineError, match=name):
        EngineKey(**FIELDS | {name: value})


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"extra": 1}, {"graph": "x"}, {"shape": "ab"}])
def test_foreign_json_is_refused(change):
    with pytest.raises(EngineError):
        EngineKey.from_json(EngineKey(**FIELDS).to_json() | change)


@pytest.mark.parametrize("name", [*FIELDS, "format"])
def test_incomplete_json_is_refused(name):
    value = EngineKey(**FIELDS).to_json()
    del value[name]
    with pytest.raises(EngineError):
        EngineKey.from_json(value)


@pytest.mark.parametrize("value", [None, [], "key", 1])
def test_json_that_is_no_object_is_refused(value):
    with pytest.raises(EngineError):
        EngineKey.from_json(value)


def test_the_digest_is_the_same_in_every_process():
    code = (
        "from impasto.optimize.keys import EngineKey; print(EngineKey('onnxruntime', 'ab' * 32, '', (), 'fp32').digest)"
    )
    here = EngineKey("onnxruntime", "ab" * 32, "", (), "fp32").digest
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert run.stdout.decode().strip() == here


X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
cpu MHz\t\t: 2100.000
flags\t\t: {flags}
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""
RISCV = "processor\t: 0\nhart\t: 2\nisa\t: rv64imafdcv_zba\nuarch\t: sifive,u74\n"


def test_the_cpu_is_told_by_its_computing_instructions():
    computing = ["avx", "avx2", "avx512_bf16", "avx512f", "amx_tile", "f16c", "fma", "sse4_2", "ssse3", "vaes"]
    others = ["fpu", "vme", "smep", "smap", "ibrs", "hypervisor", "constant_tsc", "md_clear"]
    for seed in range(5):
        flags = random.Random(seed).sample(computing + others, len(computing + others))
        facts = _cpuinfo(X86.format(flags=" ".join(flags)))
        assert facts == {"model": "Intel(R) Xeon(R) Processor", "features": " ".join(sorted(computing))}


def test_arm_and_riscv_are_told_too():
    assert _cpuinfo(ARM) == {"model": "0x41 0xd40", "features": "asimd asimddp asimdhp bf16 fp i8mm sve"}
    assert _cpuinfo(RISCV) == {"model": "sifive,u74", "features": "rv64imafdcv_zba"}


@pytest.mark.parametrize("text", ["", "\n\n", "no colons here", ":::\n: :"])
def test_an_odd_cpuinfo_is_no_error(text):
    assert _cpuinfo(text) == {"model": "", "features": ""}


def test_this_machine_is_in_the_key_by_default():
    key = EngineKey("onnxruntime", "ab" * 32, "", (1, 3, 8, 8), "fp32")
    assert key.machine == cpu()
    assert set(key.machine) == {"system", "architecture", "model", "features"}
    assert key.machine["architecture"]
