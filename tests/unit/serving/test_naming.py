from __future__ import annotations

from dataclasses import replace

import pytest

from trimodal.errors import InvalidRecord, MalformedBody
from trimodal.records import Payload
from trimodal.serving.decode import decode
from trimodal.serving.naming import name_fields

VALUES = {"order_id": "17", "chat": "hello", "events": "scan", "amount": "2.5", "orders": "3"}


@pytest.fixture
def bare(schema):
    """A model directory without `feature_columns.txt`."""
    return replace(schema, columns=None)


@pytest.fixture
def wrapped(schema):
    """A model directory whose clients wrap their records."""
    return replace(schema, envelope="instances")


def name_csv(text, schema):
    return [dict(record.values) for record in name_fields(decode(text.encode(), "text/csv"), schema)]


def refused(payload, schema, error=InvalidRecord):
    with pytest.raises(error) as caught:
        name_fields(payload, schema)
    return caught.value


# --- named rows


def test_records_are_counted_from_zero_and_keep_their_values(schema):
    rows = [VALUES, VALUES | {"amount": None}]
    records = name_fields(Payload(rows), schema)
    assert [record.index for record in records] == [0, 1]
    assert [record.values for record in records] == rows


def test_other_fields_do_not_matter(schema):
    (record,) = name_fields(Payload([{"extra": [1], **VALUES}]), schema)
    assert record.values["amount"] == "2.5"


@pytest.mark.parametrize("field", ["chat", "events", "amount", "orders"])
def test_a_missing_field_is_named_with_its_record(field, schema):
    short = {name: value for name, value in VALUES.items() if name != field}
    error = refused(Payload([VALUES, VALUES, short]), schema)
    assert error.record == 2
    assert str(error) == f"Record 2 lacks the field {field}."


def test_several_missing_fields_are_all_named(schema):
    error = refused(Payload([{"chat": "hello", "order_id": 1}]), schema)
    assert str(error) == "Record 0 lacks the fields amount, orders, events."


def test_the_id_is_never_required(schema):
    named = {name: value for name, value in VALUES.items() if name != "order_id"}
    assert name_fields(Payload([named]), schema)[0].values == named


def test_without_feature_columns_a_field_may_be_absent(bare):
    assert name_fields(Payload([{"chat": "hello"}]), bare)[0].values == {"chat": "hello"}


@pytest.mark.parametrize("row", [{}, {"order_id": 1}, {"Chat": "hello", "AMOUNT": 1}])
def test_but_a_record_with_none_of_the_fields_is_refused(row, bare):
    error = refused(Payload([{"chat": "hello"}, row]), bare)
    assert error.record == 1
    assert "chat" in str(error)
    assert "amount" in str(error)


def test_names_decide_even_when_the_count_would_fit_by_position(schema):
    other = {"a": "17", "b": "hello", "c": "scan", "d": "2.5", "e": "3"}
    assert "lacks the fields" in str(refused(Payload([other]), schema))


# --- positional rows


def test_positional_json_rows_follow_feature_columns(schema):
    payload = decode(b'[["17", "hello", "scan", 2.5, null], [18, "b", "", 1, 2]]', "application/json")
    first, second = name_fields(payload, schema)
    assert first.values == {"order_id": "17", "chat": "hello", "events": "scan", "amount": 2.5, "orders": None}
    assert (second.index, second.values["orders"]) == (1, 2)


def test_positional_and_named_rows_may_be_mixed(schema):
    records = name_fields(Payload([VALUES, list(VALUES.values())]), schema)
    assert records[0].values == records[1].values


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_wrong_count_of_values_names_the_columns(count, schema):
    error = refused(Payload([list(VALUES.values()), ["x"] * count]), schema)
    assert error.record == 1
    assert f"Record 1 has {count} columns; the model expects 5: order_id, chat, events, amount, orders." == str(error)


def test_a_json_list_of_names_is_no_header(schema):
    payload = Payload([list(VALUES), list(VALUES.values())])
    assert [record.values["chat"] for record in name_fields(payload, schema)] == ["chat", "hello"]


def test_values_without_names_need_feature_columns(bare):
    error = refused(Payload([["17", "hello", "scan", 2.5, 3]]), bare)
    assert error.record == 0
    assert "feature_columns.txt" in str(error)


# --- CSV headers


def test_csv_without_a_header(schema):
    assert name_csv("17,hello,scan,2.5,3\n18,,scan,,1\n", schema) == [
        VALUES,
        {"order_id": "18", "chat": None, "events": "scan", "amount": None, "orders": "1"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "order_id,chat,events,amount,orders\n17,hello,scan,2.5,3\n",
        '"order_id","chat","events","amount","orders"\r\n"17","hello","scan","2.5","3"\r\n',
        "\ufefforder_id,chat,events,amount,orders\n17,hello,scan,2.5,3\n",
        "order_id , chat, events,\tamount,orders \n17,hello,scan,2.5,3\n",
    ],
    ids=["plain", "quoted", "byte order mark", "spaces"],
)
def test_a_header_is_recognised(text, schema):
    assert name_csv(text, schema) == [VALUES]


def test_the_columns_of_a_header_may_come_in_any_order(schema):
    (values,) = name_csv("orders,events,chat,order_id,amount\n3,scan,hello,17,2.5\n", schema)
    assert values == VALUES


@pytest.mark.parametrize("extra", ["comment", "", "NA", "Unnamed: 0"])
def test_a_header_may_name_other_columns_too(extra, schema):
    (values,) = name_csv(f"{extra},order_id,chat,events,amount,orders\n9,17,hello,scan,2.5,3\n", schema)
    assert {name: values[name] for name in VALUES} == VALUES


def test_a_header_may_leave_out_what_is_not_required(schema, bare):
    assert name_csv("orders,events,chat,amount\n3,scan,hello,2.5\n", schema)[0]["amount"] == "2.5"
    assert name_csv("chat\nhello\n", bare) == [{"chat": "hello"}]


def test_a_header_that_lacks_a_field_names_it(schema):
    error = refused(decode(b"order_id,chat,amount,orders\n17,hello,2.5,3\n", "text/csv"), schema)
    assert (error.record, str(error)) == (0, "Record 0 lacks the field events.")


def test_lines_after_a_header_are_counted_from_zero(schema):
    body = b"order_id,chat,events,amount,orders\n17,hello,scan,2.5,3\n18,hello\n"
    error = refused(decode(body, "text/csv"), schema)
    assert error.record == 1
    assert "has 2 columns; its header 5." in str(error)


def test_the_width_is_that_of_the_header(schema):
    error = refused(decode(b"chat,events,amount,orders\n17,hello,scan,2.5,3\n", "text/csv"), schema)
    assert "has 5 columns; its header 4." in str(error)


@pytest.mark.parametrize("line", ["17,hello,scan,2.5", "17,hello,scan,2.5,3,", "17"])
def test_headerless_lines_must_have_the_width_of_feature_columns(line, schema):
    error = refused(decode(f"17,hello,scan,2.5,3\n{line}\n".encode(), "text/csv"), schema)
    assert (error.status, error.record) == (422, 1)


def test_a_line_with_a_number_is_a_record_even_if_a_text_is_a_field_name(schema):
    assert name_csv("17,chat,events,2.5,orders\n", schema) == [
        {"order_id": "17", "chat": "chat", "events": "events", "amount": "2.5", "orders": "orders"}
    ]


def test_only_the_first_line_can_be_a_header(schema):
    first, second = name_csv("17,hello,scan,2.5,3\norder_id,chat,events,amount,orders\n", schema)
    assert first == VALUES
    assert second["amount"] == "amount"


def test_a_header_alone_is_malformed(schema):
    error = refused(decode(b"order_id,chat,events,amount,orders\n", "text/csv"), schema, MalformedBody)
    assert "header" in str(error)


def test_a_header_that_names_a_field_twice_is_malformed(schema):
    body = b"order_id,chat,events,amount,chat,orders\n17,hello,scan,2.5,other,3\n"
    assert "chat" in str(refused(decode(body, "text/csv"), schema, MalformedBody))


@pytest.fixture
def doubled(schema):
    """A model directory whose `feature_columns.txt` lists a field twice."""
    return replace(schema, columns=("order_id", "chat", "amount", "events", "orders", "amount"))


def test_the_last_value_of_a_column_that_is_listed_twice_wins(doubled):
    assert name_csv("17,hello,9.5,scan,3,2.5\n", doubled) == [VALUES]
    payload = decode(b'[["17", "hello", "9.5", "scan", "3", "2.5"]]', "application/json")
    assert [record.values for record in name_fields(payload, doubled)] == [VALUES]


def test_a_header_may_then_repeat_it_too(doubled):
    assert name_csv("order_id,chat,amount,events,orders,amount\n17,hello,9.5,scan,3,2.5\n", doubled) == [VALUES]
    assert name_csv("order_id,chat,amount,events,orders\n17,hello,2.5,scan,3\n", doubled) == [VALUES]


@pytest.mark.parametrize(
    ("header", "name"), [("amount,chat,amount,events,orders,amount", "amount"), ("chat,chat,amount,amount", "chat")]
)
def test_but_not_more_often_and_no_other(header, name, doubled):
    error = refused(decode(f"{header}\n".encode(), "text/csv"), doubled, MalformedBody)
    assert str(error) == f"The CSV header names “{name}” more than once."


def test_csv_without_header_and_feature_columns_is_refused(bare):
    error = refused(decode(b"17,hello,scan,2.5,3\n", "text/csv"), bare)
    assert "CSV header" in str(error)


# --- the envelope


@pytest.mark.parametrize("rows", [[VALUES], [VALUES, VALUES], [list(VALUES.values()), VALUES]])
def test_the_envelope_is_opened_where_the_model_directory_asks_for_it(rows, wrapped):
    records = name_fields(Payload([{"instances": rows, "parameters": {}}]), wrapped)
    assert [record.values for record in records] == [VALUES] * len(rows)
    assert [record.index for record in records] == list(range(len(rows)))


def test_the_envelope_stays_closed_where_it_does_not(schema):
    assert "lacks the fields" in str(refused(Payload([{"instances": [VALUES]}]), schema))


def test_records_need_no_envelope_where_it_is_allowed(wrapped):
    assert name_fields(Payload([VALUES]), wrapped)[0].values == VALUES


def test_a_field_with_the_envelopes_name_is_a_field(wrapped):
    schema = replace(wrapped, secondary="instances", columns=None)
    row = {"chat": "hello", "instances": ["not", "records"]}
    assert [record.values for record in name_fields(Payload([row]), schema)] == [row]


def test_only_a_single_object_can_be_an_envelope(wrapped):
    error = refused(Payload([VALUES, {"instances": [VALUES]}]), wrapped)
    assert error.record == 1


@pytest.mark.parametrize("inner", [[], {}, None, "hello", 3, {"chat": ["hello"]}])
def test_an_envelope_must_hold_records(inner, wrapped):
    assert "instances" in str(refused(Payload([{"instances": inner}]), wrapped, MalformedBody))


@pytest.mark.parametrize("item", [None, 1, "hello"])
def test_each_item_of_an_envelope_must_be_a_record(item, wrapped):
    error = refused(Payload([{"instances": [VALUES, item]}]), wrapped, MalformedBody)
    assert error.record == 1
