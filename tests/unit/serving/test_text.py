from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimodal.serving.markup import TextError
from trimodal.serving.text import MESSAGE_STEPS, PLACEHOLDER, STEPS, TextEncoder

ALL_STEPS = (
    "dialogue_splitter",
    "html_normalizer",
    "emoji_remover",
    "text_normalizer",
    "dialogue_chunker",
    "tokenizer",
)


@pytest.fixture(scope="session")
def make_encoder(tokenizer):
    def make(steps=ALL_STEPS, max_tokens=512, max_chunks=3, **options):
        return TextEncoder(tokenizer, steps, max_tokens, max_chunks, **options)

    return make


@pytest.fixture(scope="session")
def read(vocabulary):
    """Turns chunks of ids back into texts of tokens."""
    return lambda encoded: [" ".join(vocabulary[i] for i in chunk) for chunk in encoded.chunks]


def mark(*messages):
    return "".join(f"[bom]{message}[eom]" for message in messages)


# --- markers


@pytest.mark.parametrize(
    ("text", "chunk"),
    [
        ("[bom]hello[eom]", "hello"),
        ("[bom] hello \n[eom]", "hello"),
        ("before [bom]hello[eom] between [bom]please[eom] after", "hello please"),
        ("[bom]hello\nthe\n\nparcel[eom]", "hello the parcel"),
        ("[bom]hello[eom][eom] [eom]please", "hello"),
        ("[eom]lost[bom]hello[eom]", "hello"),
        ("[bom]hello[eom][bom][eom][bom]  [eom][bom]please[eom]", "hello please"),
        ("[bom]hello[bom]please[eom] lost[eom]", "hello [ b ##o ##m ] please"),  # not greedy, and not nested
        ("[bom]hello[eom][bom]please", "hello"),  # a marker without its end
    ],
)
def test_only_what_stands_between_the_markers_is_read(text, chunk, make_encoder, read):
    encoded = make_encoder().encode(text)
    assert read(encoded) == [f"[CLS] {chunk} [SEP]"]
    assert not encoded.unmarked


@pytest.mark.parametrize(
    "text", ["", " \n", "hello", "[BOM]hello[EOM]", "[Bom]hello[eom]", "[bom]hello", "hello[eom]", "[eom]hello[bom]"]
)
def test_a_text_without_markers_is_a_placeholder(text, make_encoder, read):
    encoded = make_encoder().encode(text)
    assert read(encoded) == [f"[CLS] {PLACEHOLDER} [SEP]"]
    assert encoded.unmarked
    assert (encoded.cut_messages, encoded.dropped_chunks) == (0, 0)


@pytest.mark.parametrize(
    "text", ["[bom][eom]", "[bom] [eom][bom]\n[eom]", "[bom]\U0001f600[eom]", "[bom]<br>[eom]", "[bom]日本語[eom]"]
)
def test_messages_in_which_nothing_is_left_are_a_placeholder(text, make_encoder, read):
    encoded = make_encoder().encode(text)
    assert read(encoded) == ["[CLS] . [SEP]"]
    assert not encoded.unmarked


def test_unmarked_texts_are_read_whole_where_the_model_directory_asks_for_it(make_encoder, read):
    encoder = make_encoder(read_unmarked=True)
    encoded = encoder.encode("  Hello <b>the</b> parcel ")
    assert read(encoded) == ["[CLS] hello the parcel [SEP]"]
    assert encoded.unmarked
    assert read(encoder.encode("lost [bom]hello[eom]")) == ["[CLS] hello [SEP]"]
    assert read(encoder.encode("lost [bom] [eom]")) == ["[CLS] . [SEP]"]
    assert read(encoder.encode(" ")) == ["[CLS] . [SEP]"]


def test_without_the_splitter_the_whole_text_is_one_message(make_encoder, read):
    encoded = make_encoder(("text_normalizer", "dialogue_chunker", "tokenizer")).encode(" Hello   the\nPARCEL ")
    assert read(encoded) == ["[CLS] hello the parcel [SEP]"]
    assert not encoded.unmarked


# --- the steps together


def test_every_step_has_a_name():
    assert set(ALL_STEPS) == STEPS
    assert set(MESSAGE_STEPS) == {"html_normalizer", "emoji_remover", "text_normalizer"}


def test_each_step_is_applied_to_each_message_on_its_own(make_encoder, read):
    encoded = make_encoder().encode(mark("<b>Hello</b>\U0001f600", "  THE <br> parcel ", "漢字 \U0001f914"))
    assert read(encoded) == ["[CLS] hello the parcel [UNK] [SEP]"]


def test_steps_that_are_not_named_are_not_applied(make_encoder, read):
    steps = ("dialogue_splitter", "text_normalizer", "dialogue_chunker", "tokenizer")
    assert read(make_encoder(steps).encode(mark("<b>HELLO</b>"))) == [
        "[CLS] [UNK] b [UNK] hello [UNK] [UNK] b [UNK] [SEP]"
    ]


def test_steps_run_in_their_order(make_encoder, read):
    text = mark("&#128512; hello")  # an emoji, once the reference is resolved
    html_first = ("dialogue_splitter", "html_normalizer", "emoji_remover", "dialogue_chunker", "tokenizer")
    emoji_first = ("dialogue_splitter", "emoji_remover", "html_normalizer", "dialogue_chunker", "tokenizer")
    assert read(make_encoder(html_first).encode(text)) == ["[CLS] hello [SEP]"]
    assert read(make_encoder(emoji_first).encode(text)) == ["[CLS] [UNK] hello [SEP]"]


def test_without_the_chunker_each_message_is_a_chunk(make_encoder, read):
    encoded = make_encoder(("dialogue_splitter", "tokenizer"), max_tokens=4).encode(mark("hello", "the parcel lost"))
    assert read(encoded) == ["[CLS] hello [SEP]", "[CLS] the parcel [SEP]"]


# --- chunks


def test_messages_fill_a_chunk_up_to_the_limit(make_encoder, read):
    encoded = make_encoder(max_tokens=6).encode(mark("the parcel", "lost", "please", "scan it depot"))
    assert read(encoded) == ["[CLS] the parcel lost please [SEP]", "[CLS] scan it depot [SEP]"]


def test_a_full_chunk_loses_two_tokens_because_the_limit_does_not_count_the_special_ones(make_encoder, read):
    encoded = make_encoder(max_tokens=6).encode(mark("the parcel lost", "please scan it", "hello"))
    assert read(encoded) == ["[CLS] the parcel lost please [SEP]", "[CLS] hello [SEP]"]
    assert encoded.cut_messages == 0


def test_one_token_is_lost_where_one_place_is_left(make_encoder, read):
    encoded = make_encoder(max_tokens=6).encode(mark("the parcel lost", "please scan"))
    assert read(encoded) == ["[CLS] the parcel lost please [SEP]"]


def test_a_message_at_the_limit_is_not_cut_as_a_message(make_encoder, read):
    encoded = make_encoder(max_tokens=5).encode(mark("the parcel lost please scan"))
    assert read(encoded) == ["[CLS] the parcel lost [SEP]"]
    assert encoded.cut_messages == 0


def test_the_rest_of_a_message_over_the_limit_is_lost(make_encoder, read):
    encoded = make_encoder(max_tokens=5).encode(mark("the parcel lost please scan it depot label", "hello"))
    assert read(encoded) == ["[CLS] the parcel lost [SEP]", "[CLS] hello [SEP]"]
    assert encoded.cut_messages == 1


def test_a_cut_message_loses_its_unknown_tokens(make_encoder, read):
    # Five tokens are kept, two of them unknown; decoding drops those, and so the next message still fits.
    encoded = make_encoder(max_tokens=5).encode(mark("the \U0001f914 parcel \U0001f914 lost please scan", "hello it"))
    assert read(encoded) == ["[CLS] the parcel lost [SEP]"]
    assert encoded.cut_messages == 1


def test_a_message_that_is_not_cut_keeps_them(make_encoder, read):
    encoded = make_encoder(max_tokens=8).encode(mark("the \U0001f914 parcel"))
    assert read(encoded) == ["[CLS] the [UNK] parcel [SEP]"]


def test_a_message_cut_to_unknown_tokens_leaves_a_placeholder(make_encoder, read):
    encoded = make_encoder(max_tokens=4).encode(mark("\U0001f914 " * 5 + "hello"))
    assert read(encoded) == ["[CLS] . [SEP]"]
    assert encoded.cut_messages == 1


def test_a_cut_message_is_decoded_with_its_spaces_cleaned_up(make_encoder, tokenizer):
    encoder = make_encoder()
    ids = encoder.tokenizer.encode("don't scan, please!", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "don ' t scan , please !"
    assert encoder._decode(ids) == "don't scan, please!"


def test_a_word_that_is_cut_inside_is_tokenized_again(make_encoder, read):
    encoded = make_encoder(max_tokens=4).encode(mark("the parcel scaning please"))  # the, parcel, s, ##c, …
    assert read(encoded) == ["[CLS] the parcel [SEP]"]
    assert read(make_encoder(max_tokens=6).encode(mark("the scab lost please"))) == ["[CLS] the s ##c ##a [SEP]"]


@pytest.mark.parametrize(("max_chunks", "kept", "dropped"), [(1, 1, 4), (3, 3, 2), (5, 5, 0), (9, 5, 0), (None, 5, 0)])
def test_chunks_beyond_the_limit_are_dropped_and_counted(max_chunks, kept, dropped, make_encoder, read):
    text = mark(*["the parcel lost"] * 5)
    encoded = make_encoder(max_tokens=5, max_chunks=max_chunks).encode(text)
    assert read(encoded) == ["[CLS] the parcel lost [SEP]"] * kept
    assert encoded.dropped_chunks == dropped


def test_special_tokens_written_in_a_text_do_not_break_a_chunk(make_encoder):
    (chunk,) = (
        make_encoder(("dialogue_splitter", "dialogue_chunker", "tokenizer")).encode(mark("hello [SEP] [CLS] it")).chunks
    )
    assert (chunk[0], chunk[-1]) == (2, 3)


# --- anything at all


@given(
    text=st.lists(
        st.text(max_size=12)
        | st.sampled_from(["[bom]", "[eom]", "<b>", "&amp;", "hello ", "the parcel ", "\U0001f914 "]),
        max_size=25,
    ).map("".join),
    max_tokens=st.integers(3, 12),
    max_chunks=st.none() | st.integers(1, 3),
    whole=st.booleans(),
)
@settings(max_examples=400)
def test_chunks_are_never_empty_and_never_too_long(text, max_tokens, max_chunks, whole, make_encoder):
    encoder = make_encoder(max_tokens=max_tokens, max_chunks=max_chunks, read_unmarked=whole)
    try:
        encoded = encoder.encode(text)
    except TextError:
        assert "<" in text or "&" in text
        return
    assert 1 <= len(encoded.chunks) <= (max_chunks or len(text) + 1)
    for chunk in encoded.chunks:
        assert 2 <= len(chunk) <= max_tokens
        assert (chunk[0], chunk[-1]) == (2, 3)
    assert encoder.encode(text) == encoded


surrogates = st.text(st.characters(categories=["Cs", "L", "P", "Zs", "So"]), min_size=1, max_size=10)


@pytest.mark.parametrize("steps", [ALL_STEPS, ("dialogue_splitter", "tokenizer"), ("tokenizer",), ("html_normalizer",)])
@given(text=surrogates.map(mark) | surrogates.map(lambda text: f"[bom]<b>{text}</b>[eom]"))
@settings(max_examples=60)
def test_lone_surrogates_give_a_result_or_a_text_error(steps, text, make_encoder):
    with suppress(TextError):
        assert make_encoder(steps).encode(text).chunks


def test_a_lone_surrogate_is_a_text_error_that_holds_no_text(make_encoder):
    steps = ("dialogue_splitter", "dialogue_chunker", "tokenizer")  # the emoji step would remove it
    with pytest.raises(TextError) as caught:
        make_encoder(steps).encode(mark("hello \ud83d"))
    assert str(caught.value) == "holds characters that are not Unicode text"


def test_a_message_of_nested_markup_is_read(make_encoder, read):
    text = mark("<div>" * 2000 + "hello" + "</div>" * 2000)
    assert read(make_encoder().encode(text)) == ["[CLS] hello [SEP]"]


def test_other_threads_run_while_a_long_text_is_tokenized(make_encoder):
    encoder = make_encoder()
    text = "[bom] " + "my parcel never arrived " * 60_000 + "[eom]"
    waiting = threading.Thread(target=encoder.tokenizer.encode_batch_fast, args=([text],))
    working = threading.Thread(target=encoder.encode, args=(text,))
    turns = []
    for thread in (waiting, working):  # the first shows how many turns there are where nothing else is done
        count = 0
        thread.start()
        while thread.is_alive():
            time.sleep(0)
            count += 1
        turns.append(count)

    assert turns[1] > turns[0] / 10
