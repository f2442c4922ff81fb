"""Each step that changes a message, on its own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import suppress

import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st

from trimodal.serving.markup import TextError, normalize_html
from trimodal.serving.text import clean_up_tokenization, normalize_text, remove_emoji


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (" plain text \n", "plain text"),
        ("<p>hello</p><p>parcel</p>", "hello parcel"),
        ("<div> hello <b> the </b>\n parcel</div>", "hello the parcel"),
        ("lost &amp; damaged", "lost & damaged"),
        ("a &lt; b", "a < b"),
        ("caf&eacute; &#8364; &#x20ac;", "café € €"),
        ("1 < 2", "1 < 2"),
        ("hello<br/>parcel", "hello parcel"),
        ("hello <!-- secret --> parcel", "hello parcel"),
        ("hello <b>parcel", "hello parcel"),
        ("<a href='x'>label</a>", "label"),
        ("<>", "<>"),
    ],
)
def test_html(markup, text):
    assert normalize_html(markup) == text


@given(text=st.text(st.characters(exclude_characters="<&", exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=300)
def test_the_short_way_for_texts_without_markup_gives_what_the_parser_gives(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = BeautifulSoup(text, "html.parser").get_text(separator=" ", strip=True)
    assert normalize_html(text) == parsed


@pytest.mark.parametrize("markup", ["<![foo[hello", "hello <![ parcel"])
def test_markup_that_the_parser_rejects_is_a_text_error_that_holds_no_text(markup):
    with pytest.raises(TextError) as caught:
        normalize_html(markup)
    assert "hello" not in str(caught.value)


@pytest.mark.parametrize(
    "markup",
    [f"&#{'9' * 5000};", f"<a href='&#{'9' * 5000};'>label</a>", "lost &amp; \ud83d"],
    ids=["endless reference", "endless reference in an attribute", "lone surrogate"],
)
def test_markup_at_which_the_parser_stumbles_is_read_or_refused(markup):
    with suppress(TextError):
        assert isinstance(normalize_html(markup), str)


def test_markup_that_is_unusual_is_read_without_a_warning():
    program = (
        "from trimodal.serving.markup import normalize_html\n"
        "print(normalize_html('<?xml version=\"1.0\"?><note>hello</note>'))\n"
        "print(normalize_html('https://example.com/?a=1&b=2'))\n"
    )

    # pytest puts filters of its own before those of the process: a process without them
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("hello\nhttps://example.com/?a=1&b=2\n", "")


@given(
    markup=st.lists(
        st.sampled_from(
            ["<", ">", "&", "<!", "<![", "]]>", "<!--", "-->", "<?", "/", "=", '"', "'", ";", "#", "&#", "&#x"]
        )
        | st.sampled_from(
            ["#", "&#", "&#x", "CDATA[", "DOCTYPE ", "script", "b", " ", "amp", "110000", "d800", "\0", "é"]
        ),
        max_size=14,
    ).map("".join)
)
@settings(max_examples=500)
def test_any_markup_gives_a_text_or_a_text_error(markup):
    try:
        text = normalize_html(markup)
    except TextError:
        return
    assert text == text.strip()


@pytest.mark.parametrize(
    "removed",
    [
        "\U0001f600",  # emoticons, first and last
        "\U0001f64f",
        "\U0001f300",  # pictographs
        "\U0001f5ff",
        "\U0001f680",  # transport
        "\U0001f6ff",
        "\U0001f1e6\U0001f1fa",  # a flag
        "\u2600",  # sun, by the range of enclosed characters
        "\u2702",  # dingbats
        "\u27b0",
        "\u24c2",  # the range that takes all of CJK with it
        "漢字",
        "かな",
        "カナ",
        "한국어",
        "\ufe0f",
        "\uff01",
        "\ue000",
        "\ufffd",
        "\U0001f251",
    ],
    ids=ascii,
)
def test_the_emoji_step_removes_what_the_training_removed(removed):
    assert remove_emoji(f"a {removed}b{removed}") == "a b"


@pytest.mark.parametrize(
    "kept",
    [*("\U0001f914", "\U0001f970", "\U0001f700", "\U0001f252", "\U0001f2ff", "\u24c1", "\u231a", "\u200d"), *"éжع€™"],
    ids=ascii,
)
def test_and_keeps_what_it_kept(kept):
    assert remove_emoji(f"a {kept}b") == f"a {kept}b"


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  Hello\t The \n\nPARCEL ", "hello the parcel"),
        ("a\u00a0\u2003b", "a b"),
        ("ÄÖÜ İ", "äöü i̇"),
        ("", ""),
        ("\n", ""),
        ("'Quoted', (twice)!", "'quoted', (twice)!"),
    ],
)
def test_text_normalizer(text, normalized):
    assert normalize_text(text) == normalized


@pytest.mark.parametrize(
    ("spaced", "joined"),
    [
        ("hello . the parcel , please ! lost ? ", "hello. the parcel, please! lost? "),
        ("it ' s", "it's"),
        ("do n't", "don't"),
        ("i 'm it 's we 've they 're", "i'm it's we've they're"),
        ("' hello '", "' hello '"),
        ("a ; b : c ( d )", "a ; b : c ( d )"),
        ("hello  .", "hello ."),
    ],
)
def test_clean_up(spaced, joined):
    assert clean_up_tokenization(spaced) == joined


def test_clean_up_is_that_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    reference = transformers.PreTrainedTokenizerBase.clean_up_tokenization
    for text in ("it ' s . a ' m n't 'm , 's ! 've ? 're ' ' . . ,", " ' '  's n't.n't ' n't", "a ' ' b ' 's 're 've"):
        assert clean_up_tokenization(text) == reference(None, text)
