from __future__ import annotations

import functools

import pytest

import inference
from model_directories import artifact_error
from trimodal.servers.handlers import NAMES, call, find_handlers

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture
def code(tmp_path):
    """Writes files into the `code/` of a model directory, and returns the directory."""

    def write(**files):
        folder = tmp_path / "model" / "code"
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / f"{name}.py").write_text(content)
        return tmp_path / "model"

    return write


def functions(handlers):
    return [getattr(handlers, name) for name in NAMES]


OURS = [getattr(inference, name) for name in NAMES]


def test_without_code_the_handlers_are_ours(tmp_path):
    handlers = find_handlers(tmp_path, "inference.py")

    assert functions(handlers) == OURS
    assert handlers.transform_fn is None


@pytest.mark.parametrize("name", NAMES)
def test_a_users_function_takes_the_place_of_ours_and_no_other(code, name):
    directory = code(inference=f"def {name}(*arguments):\n    return {name!r}\n")

    handlers = find_handlers(directory, "inference.py")

    assert getattr(handlers, name)() == name
    assert [f for f in functions(handlers) if f in OURS] == [
        getattr(inference, other) for other in NAMES if other != name
    ]


def test_all_functions_of_a_user(code):
    directory = code(inference="\n".join(f"def {name}(*arguments): return {name!r}" for name in NAMES))

    assert [function() for function in functions(find_handlers(directory, "inference.py"))] == list(NAMES)


def test_an_empty_module_changes_nothing(code):
    assert functions(find_handlers(code(inference=""), "inference.py")) == OURS


def test_modules_beside_it_can_be_imported(code):
    directory = code(
        inference="import helper_of_the_user\n\ndef model_fn(model_dir): return helper_of_the_user.VALUE\n",
        helper_of_the_user="VALUE = 42\n",
    )

    assert find_handlers(directory, "inference.py").model_fn("x") == 42


def test_a_module_may_import_a_helper_when_it_is_called(code):
    directory = code(
        inference="def model_fn(model_dir):\n    import late_helper_of_the_user as late\n    return late.VALUE\n",
        late_helper_of_the_user="VALUE = 43\n",
    )

    assert find_handlers(directory, "inference.py").model_fn("x") == 43


def test_a_users_module_may_call_ours(code):
    directory = code(
        inference="import inference\n\ndef input_fn(body, content_type):\n"
        "    return inference.input_fn(body.upper(), content_type)\n"
    )

    handlers = find_handlers(directory, "inference.py")

    assert handlers.input_fn(b'{"a": 1}', "application/json").rows == [{"A": 1}]


@pytest.mark.parametrize("program", ["my_handlers.py", "my_handlers"])
def test_the_module_may_have_another_name(code, program):
    directory = code(my_handlers="def predict_fn(data, model): return 7\n", inference="raise SystemExit\n")

    assert find_handlers(directory, program).predict_fn(1, 2) == 7


def test_a_module_of_another_name_is_not_looked_at(code):
    directory = code(other="raise RuntimeError\n")

    assert functions(find_handlers(directory, "inference.py")) == OURS


def test_transform_fn_takes_the_place_of_the_last_three(code):
    directory = code(
        inference="def model_fn(model_dir): return 'model'\n\n"
        "def transform_fn(model, body, content_type, accept): return body\n"
    )

    handlers = find_handlers(directory, "inference.py")

    assert handlers.model_fn("x") == "model"
    assert handlers.transform_fn(None, b"x", "", "") == b"x"


@pytest.mark.parametrize("other", NAMES[1:])
def test_transform_fn_beside_what_it_replaces_is_an_error(code, other):
    directory = code(inference=f"def transform_fn(*arguments): ...\n\ndef {other}(*arguments): ...\n")

    with artifact_error("code/inference.py: define either transform_fn or input_fn, predict_fn and output_fn"):
        find_handlers(directory, "inference.py")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise ValueError('bad table')\n", "ValueError: bad table"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_an_error(code, content, reason):
    with artifact_error(f"code/inference.py cannot be imported: {reason}"):
        find_handlers(code(inference=content), "inference.py")


@pytest.mark.parametrize("content", ["def model_fn(:\n", "\x00"])
def test_a_module_that_is_not_python_is_an_error(code, content):
    with artifact_error("code/inference.py cannot be imported: "):
        find_handlers(code(inference=content), "inference.py")


def no_context(a, b):
    return (a, b)


def with_context(a, b, context):
    return (a, b, context)


def with_optional_context(a, b, context=None):
    return (a, b, context)


class Methods:
    def no_context(self, a, b):
        return (a, b)

    def with_context(self, a, b, context):
        return (a, b, context)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (no_context, (1, 2)),
        (with_context, (1, 2, "context")),
        (with_optional_context, (1, 2, "context")),
        (Methods().no_context, (1, 2)),
        (Methods().with_context, (1, 2, "context")),
        (functools.partial(with_context, 0), (0, 1, 2)),
        (lambda *arguments: arguments, (1, 2)),
    ],
)
def test_a_handler_gets_the_context_when_it_takes_one_more_parameter(function, expected):
    assert call(function, 1, 2, context="context") == expected


@pytest.mark.parametrize("function", [lambda: 1, lambda _a: 1, lambda _a, _b, _c, _d: 1])
def test_a_handler_of_another_number_of_parameters_is_an_error(function):
    with pytest.raises(TypeError):
        call(function, 1, 2, context="context")


def test_an_error_of_the_handler_itself_comes_through():
    def handler(_body, _content_type):
        raise TypeError("of the handler")

    with pytest.raises(TypeError, match="of the handler"):
        call(handler, 1, 2, context=None)
