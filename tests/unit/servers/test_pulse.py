"""What the supervisor reads of the serving process."""

from trimodal.servers.pulse import FILE, Pulse, State, look


def test_what_is_written_is_read(tmp_path):
    pulse = Pulse(tmp_path)
    assert look(tmp_path) == State()
    pulse.tell("loading the model")
    assert look(tmp_path) == State(stage="loading the model")
    pulse.beat(None)
    state = look(tmp_path)
    assert (state.ready, state.slice_start, state.stage) == (True, 0.0, "waiting for requests")
    pulse.beat(12.5)
    assert (look(tmp_path).slice_start, look(tmp_path).stage) == (12.5, "answering")


def test_without_a_page_it_is_starting(tmp_path):
    assert look(tmp_path) == State()
    (tmp_path / FILE).write_bytes(b"torn")
    assert look(tmp_path) == State()


def test_what_is_stuck():
    assert State().stuck(1000.0, 10.0) is None
    assert State(beat=995.0, slice_start=991.0).stuck(1000.0, 10.0) is None
    assert "inference thread" in State(beat=995.0, slice_start=980.0).stuck(1000.0, 10.0)
    assert "event loop" in State(beat=985.0).stuck(1000.0, 10.0)
