import io
import pickle

import pytest

from impasto.models.pickle_reader import Call, Global, Persistent, read_pickle


def dumps(value, protocol=2):
    return pickle.dumps(value, protocol)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        255,
        65535,
        -1,
        2**31 - 1,
        1 << 80,
        -(1 << 80),
        1.5,
        "",
        "features.0.weight",
        "é",
        "long" * 100,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4, (5, ("a",))),
        [],
        [1],
        [1, [2, [3]]],
        list(range(3000)),
        {},
        {"a": 1},
        {f"key {i}": (i, [i]) for i in range(3000)},
    ],
    ids=lambda v: repr(v)[:20],
)
def test_data_is_what_pickle_reads(value):
    read = read_pickle(io.BytesIO(dumps(value)))
    assert read == value
    assert type(read) is type(value)


def test_shared_objects_stay_shared():
    shared = [1]
    first, second = read_pickle(io.BytesIO(dumps((shared, shared))))
    assert first is second


def test_python_2_text():
    # A dictionary as Python 2.7 wrote it: {'a': 1}, with SHORT_BINSTRING.
    assert read_pickle(io.BytesIO(b"\x80\x02}q\x00U\x01aq\x01K\x01s.")) == {"a": 1}


def test_pickles_one_after_the_other():
    file = io.BytesIO(dumps("one") + dumps({"two": 2}) + b"rest")
    assert read_pickle(file) == "one"
    assert read_pickle(file) == {"two": 2}
    assert file.read() == b"rest"


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


def test_calls_stay_calls():
    call = read_pickle(io.BytesIO(dumps(Bomb())))
    assert isinstance(call, Call)
    assert (call.name, call.args) == ("__builtin__.exec", ("raise SystemExit('the pickle was run')",))


def test_a_call_of_what_has_no_name_has_none():
    assert read_pickle(io.BytesIO(b"K\x01)R.")).name == "an unnamed object"


def test_globals_need_not_exist():
    found = read_pickle(io.BytesIO(b"\x80\x02cno.such.module\nthing\n."))
    assert isinstance(found, Global)
    assert found.name == "no.such.module.thing"


def test_persistent_references():
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", obj.real) if isinstance(obj, complex) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump([3j])
    (found,) = read_pickle(io.BytesIO(buffer.getvalue()))
    assert isinstance(found, Persistent)
    assert found.id == ("storage", 0.0)


def test_every_truncation_is_noticed():
    whole = dumps({"a": (1, [2, "three"], 4.0), "b": {"c": None}})
    for size in range(len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
            read_pickle(io.BytesIO(whole[:size]))


@pytest.mark.parametrize(
    "data",
    [
        b".",
        b"K\x01K\x02.",  # two values left
        b"K\x01a.",  # append without a list
        b"K\x01K\x02a.",
        b"K\x01K\x02K\x03s.",  # items of a number
        b"}((K\x01tK\x02s.",  # mark left over, key not text
        b"}K\x01K\x02s.",  # key not text
        b"}(X\x01\x00\x00\x00aK\x02K\x03u.",  # odd number of items
        b"t.",  # tuple without a mark
        b"(\x87.",  # tuple of three of nothing
        b"h\x05.",  # nothing remembered there
        b"q\x00.",  # nothing to remember
        b"cbuiltins\nprint\nK\x01R.",  # arguments that are no tuple
        b"K\x01}b.",  # state for a number
        b"\x80\x04\x8c\x08builtins\x8c\x05print\x93.",  # STACK_GLOBAL
        b"cbuiltins\nprint\nX\x01\x00\x00\x00a\x85i.",
        b"(ibuiltins\nprint\n.",  # INST
        b"\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID
        b"X\xff\xff\xff\x7fa.",  # text longer than the file
        b"\x8a\xffa.",
        b"X\x01\x00\x00\x00\xff.",  # not UTF-8
        b"\xff.",
        b"",
    ],
)
def test_hostile_pickles_are_refused_without_running_anything(data, capsys):
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        read_pickle(io.BytesIO(data))
    assert capsys.readouterr().out == ""


def test_a_huge_memo_index_costs_nothing():
    # Python's own unpickler would allocate an array of this many entries.
    assert read_pickle(io.BytesIO(b"K\x07r\xff\xff\xff\x7f.")) == 7
