from __future__ import annotations

import codecs
import collections
import io
import os
import pickle
import pickletools
import struct
import subprocess
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_directories import Harmful, artifact_error
from trimodal.errors import ArtifactError
from trimodal.loading.pickles import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = {
    "none": None,
    "numbers": [0, -3, 2**64 - 1, 1.5, float("inf"), True],
    "texts": ("", "héllo", "日本"),
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "set": {1, 2},
    "frozenset": frozenset({1, 2}),
    "table": [(0.0, 0.1), (1.0, 0.9)],
    "nested": {"bins": {"a": 0.5, 1: 2}, "default_bin": 0.25},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
}

SCALARS = [
    np.float64(0.1),
    np.float32(0.1),
    np.float16(0.5),
    np.int64(-7),
    np.int8(-1),
    np.uint16(65535),
    np.bool_(True),
    np.str_("naïve"),
    np.bytes_(b"ab"),
]


def read(path, content):
    path.write_bytes(content)
    return load_pickle(path)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "impute_dict.pkl"


def of_numpy(value, protocol, module):
    """Pickles a numpy value as the numpy that calls the module of its scalars by this name does."""
    content = pickle.dumps(value, protocol)
    ours = b"numpy._core.multiarray"
    assert ours in content
    frame = content.replace(ours, module)
    if protocol >= 4:  # the name's length stands before it, and the frame's length before all
        frame = content.replace(struct.pack("<B", len(ours)) + ours, struct.pack("<B", len(module)) + module)
        body = frame[11:] if frame[2:3] == pickle.FRAME else None
        frame = frame if body is None else frame[:3] + struct.pack("<Q", len(body)) + body
    assert module in frame
    assert pickletools.dis(frame, out=io.StringIO()) is None
    return frame


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_come_back_in_every_protocol(file, value, protocol):
    assert read(file, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy1", "numpy2"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
def test_numpy_scalars_become_python_values(file, scalar, protocol, module):
    value = read(file, of_numpy({"amount": scalar}, protocol, module))

    assert value == {"amount": scalar.item()}
    assert type(value["amount"]) is type(scalar.item())


def test_tables_of_numpy_scalars_of_both_versions_agree(file):
    table = [(np.float64(raw), np.float64(raw**2)) for raw in np.linspace(0, 1, 5)]

    old = read(file, of_numpy(table, 3, b"numpy.core.multiarray"))
    new = read(file, of_numpy(table, 4, b"numpy._core.multiarray"))

    assert old == new == [(float(raw), float(calibrated)) for raw, calibrated in table]


def test_numpy_scalars_of_the_other_byte_order(file):
    scalar = np.array([1.5], dtype=">f8")[0]
    content = pickle.dumps(scalar, 3)
    swapped = content.replace(b"<", b">").replace(struct.pack("<d", 1.5), struct.pack(">d", 1.5))

    assert read(file, swapped) == 1.5


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (os.system, "posix.system"),
        (eval, "eval"),
        (exec, "exec"),
        (subprocess.Popen, ".Popen"),
        (subprocess.check_output, ".check_output"),
        (__import__, "__import__"),
        (getattr, "getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, file, function, shown, protocol):
    marker = tmp_path / "ran"
    command = f"touch {marker}"
    arguments = {
        eval: (f"__import__('os').system({command!r})",),
        exec: (f"import os; os.system({command!r})",),
        subprocess.Popen: (["touch", str(marker)],),
        subprocess.check_output: (["touch", str(marker)],),
        __import__: ("os",),
        getattr: (marker, "touch"),
    }.get(function, (command,))
    content = pickle.dumps({"amount": Harmful(function, *arguments)}, protocol)

    with artifact_error("impute_dict.pkl", f"{shown}", "save it as JSON"):
        read(file, content)

    assert not marker.exists()


def test_the_harmful_pickles_of_these_tests_would_run(tmp_path):
    marker = tmp_path / "ran"

    pickle.loads(pickle.dumps(Harmful(os.system, f"touch {marker}")))

    assert marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([1.0, 2.0]),
        np.array([{"a": 1}], dtype=object)[0:1],
        np.datetime64("2024-01-01"),
        np.complex64(1),
        np.void(b"ab"),
        pytest,
        io.BytesIO,
        ValueError("x"),
        range(3),
    ],
    ids=["array", "object array", "datetime", "complex", "void", "module", "class", "exception", "range"],
)
def test_what_is_not_plain_is_refused(file, value):
    try:
        content = pickle.dumps(value)
    except TypeError:  # a module cannot be pickled; a reference to one can
        content = b"cpytest\nraises\n."

    with artifact_error("impute_dict.pkl"):
        read(file, content)


def test_a_numpy_scalar_of_objects_is_refused(file):
    scalar = pickle.dumps(np.float64(1), 3)
    assert b"f8" in scalar
    objects = scalar.replace(b"f8", b"O8")

    with artifact_error("impute_dict.pkl cannot be read:", "neither a number nor a string", "save it as JSON"):
        read(file, objects)


def test_a_numpy_scalar_whose_bytes_do_not_fit_its_type_is_refused(file):
    scalar = pickle.dumps(np.float32(1), 3)

    with artifact_error("impute_dict.pkl cannot be read"):
        read(file, scalar.replace(b"f4", b"f8"))


def test_every_truncation_of_a_pickle_is_an_error(file):
    content = pickle.dumps({"amount": 1.5, "count": [1, 2, 3], "name": np.float64(2)})

    for end in range(len(content)):
        with artifact_error("impute_dict.pkl"):
            read(file, content[:end])


@pytest.mark.parametrize("content", [b"", b"\x80\x09.", b"N", b"\x80", b"not a pickle", b'{"amount": 1}'])
def test_what_is_no_pickle_is_an_error_with_a_remedy(file, content):
    with artifact_error("impute_dict.pkl", "save it"):
        read(file, content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60))
def test_random_bytes_give_a_value_or_an_artifact_error(file, content):
    with_protocol = b"\x80\x04" + content + b"."
    for attempt in (content, with_protocol):
        try:
            value = read(file, attempt)
        except ArtifactError:
            continue
        assert_plain(value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_plain_value_or_an_artifact_error(file, place, byte):
    content = bytearray(pickle.dumps({"amount": 1.5, "table": [(0.0, np.float64(0.5))], "x": "text"}, 3))
    content[place % len(content)] = byte
    try:
        value = read(file, bytes(content))
    except ArtifactError:
        return
    assert_plain(value)


def assert_plain(value):
    if isinstance(value, dict):
        for key, item in value.items():
            assert key is None or isinstance(key, int | float | str | bytes)
            assert_plain(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or isinstance(value, int | float | str | bytes), type(value)


@pytest.mark.parametrize("encoding", ["utf-8", "zlib_codec", "latin1\0", ""])
def test_bytes_in_an_encoding_that_pickle_does_not_use_are_refused(file, encoding):
    with artifact_error("impute_dict.pkl"):
        read(file, pickle.dumps(Harmful(codecs.encode, "ab", encoding), 2))


@pytest.mark.parametrize("name", [b"numpy.core.multiarray\nscalar", b"numpy\ndtype", b"__builtin__\nset"])
@pytest.mark.parametrize("state", [(None, {"__defaults__": ("changed",)}), {"__class__": 1}, (1, 2, 3, 4)])
def test_a_pickle_cannot_change_what_stands_in_for_a_name(file, name, state):
    with artifact_error("impute_dict.pkl"):
        read(file, b"\x80\x02c" + name + b"\n" + pickle.dumps(state, 2)[2:-1] + b"b.")


def doubled(kind, levels=60):
    """A container of twice the same container, and so on."""
    value = kind()
    for _ in range(levels):
        value = kind((value, value))
    return value


def deep(kind, levels):
    """The pickle of containers within each other, which Python's own pickler could not write."""
    return {list: b"]" * levels + b"a" * (levels - 1), tuple: b")" + b"\x85" * levels}[kind]


def same_hash(count):
    """Numbers, each with a value, that Python gives the same hash."""
    for number in range(1, count + 1):
        yield pickle.dumps(number * (2**61 - 1), 2)[2:-1] + b"N"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(doubled(list)), "values"),
        (pickle.dumps(doubled(tuple)), "values"),
        (pickle.dumps({"bins": doubled(list)}), "values"),
        (b"\x80\x02}" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"K\x01s.", "key"),
        (b"\x80\x04\x8f(" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"\x90.", "key"),
        (b"\x80\x02" + deep(list, 200_000) + b".", "nested"),
        (b"\x80\x02" + deep(tuple, 500_000) + b".", "nested"),
        (b"\x80\x02}" + deep(tuple, 500_000) + b"K\x01s.", "key"),
        (b"\x80\x02]q\x00h\x00a.", "nested"),
        (b"\x80\x02](" + b"N" * 2_000_001 + b"e.", "values"),
        (b"(" * 2_000_001 + b"N.", "values"),
        (b"\x80\x02\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b".", "digits"),
        (b"\x80\x02}(" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"K\x01u.", "key"),
        (b"\x80\x02(" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"K\x01d.", "key"),
        (b"\x80\x04(" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"\x91.", "key"),
        (b"\x80\x02c__builtin__\nset\n]" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"a\x85R.", "key"),
        (b"\x80\x02ccollections\nOrderedDict\n]" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"K\x01\x86a\x85R.", "key"),
        (b"\x80\x02}" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"NbK\x01s.", "key"),  # BUILD with None keeps it
        (b"\x80\x02}" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"(eK\x01s.", "key"),  # so does APPENDS of nothing
        (b"\x80\x02}" + pickle.dumps(doubled(tuple), 2)[2:-1] + b"2K\x01s.", "key"),  # and DUP
        (b"\x80\x02}(" + b"".join(same_hash(1000)) + b"u.", "digits"),
        (b"\x80\x02(X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x00" + b"0c__builtin__\nset\nh\x00\x85R" * 9 + b"l.",
         "values"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x.", "something that is not plain"),
        (b"\x80\x02c__builtin__\nset\n.", "something that is not plain"),
    ],
    ids=["lists", "tuples", "within", "as key", "in a set", "deep lists", "deep tuples", "deep key", "itself", "values",
         "marks", "digits", "keys", "dict", "frozenset", "set", "ordered", "build", "append", "duplicate", "same hash",
         "copies", "bytearray", "class"],
)  # fmt: skip
def test_what_would_be_endless_or_overflow_a_stack_is_refused(file, content, words):
    """Python's own unpickler hashes for hours, ends the process with a segmentation fault, or leaves that to others."""
    with artifact_error("impute_dict.pkl cannot be read", words, "save it as JSON"):
        read(file, content)


def test_as_many_levels_as_anything_needs_are_read(file):
    value = 1
    for _ in range(32):
        value = [value]
    assert read(file, pickle.dumps(value)) == value


def test_a_list_that_two_keys_share_is_read(file):
    fields = ["a", "b"]
    assert read(file, pickle.dumps({"all": fields, "tabular": fields})) == {"all": fields, "tabular": fields}


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\x00.",  # up to 64 GiB with a larger index
        b"Np16777215\n.",
        b"\x8e" + struct.pack("<Q", 2**30) + b".",
        b"c__builtin__\nbytes\n(I1073741824\ntR.",
    ],
    ids=["LONG_BINPUT", "PUT", "BINBYTES8", "bytes(number)"],
)
def test_a_small_pickle_cannot_take_much_memory(file, content):
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with suppress(ArtifactError):
            load_pickle(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**24


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_pickle_that_may_not_be_read_is_an_error(file):
    file.write_bytes(pickle.dumps({}))
    file.chmod(0)

    with artifact_error("impute_dict.pkl"):
        load_pickle(file)
