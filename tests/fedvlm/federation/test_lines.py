"""What a person is told while a run goes on: the round, the time left, who is missing."""

import json

from flwr.app import ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.federation.grid import InProcessGrid
from fedvlm.federation.lines import Follower
from fedvlm.federation.watch import FILE, ProgressFile, WatchedGrid


def trip(refused=(), silent=(), kind="train"):
    return {
        **{"event": "trip", "trip": kind, "asked": ["node-1"], "answered": [], "seconds": 1.0},
        **{"refused": dict(refused), "silent": list(silent)},
        **{"upload_bytes": 0, "download_bytes": 0},
    }


def done(number, at, **entry):
    return {"event": "round", "time": at, "entry": {"round": number, "clients": 3} | entry}


def told(follower, *events):
    return [line for event in events for line in follower.lines(event)]


def test_time_left_follows_from_the_rounds_of_this_start_alone():
    follower = Follower(10)
    told(follower, {"event": "start", "time": 1000.0}, done(0, 1005.0))
    # Resumed: the round before this start says nothing of how long one takes.
    assert told(follower, done(7, 1015.0))[-1].endswith("; about 22 s left")
    assert told(follower, done(8, 1025.0))[-1].endswith("; about 20 s left")
    assert "about 0 s left" in told(follower, done(10, 1035.0))[-1]


def test_who_is_missing_is_named_with_the_reason_and_in_its_round_only():
    follower = Follower(3)
    lines = told(
        follower,
        {"event": "start", "time": 0.0},
        trip({"node-4": "noise"}, kind="query.agree"),
        done(0, 1.0),
        trip(silent=["node-2"]),
        trip(silent=["node-2"], kind="mask"),
        done(1, 2.0),
        trip(),
        done(2, 3.0),
    )
    one, two = (line for line in lines if line.startswith("round"))
    assert one.endswith("missing: node-2 (silent), node-4 (noise)")
    assert "missing" not in two


def test_many_that_are_missing_are_counted():
    follower = Follower(3)
    names = [f"node-{k}" for k in range(40)]
    line = told(follower, {"event": "start", "time": 0.0}, trip(silent=names), done(1, 1.0))[-1]
    assert line.count("(silent)") == 8
    assert line.endswith("and 32 more")


@given(
    st.lists(
        st.one_of(
            st.builds(trip, st.dictionaries(st.text(), st.text())),
            st.builds(done, st.integers(0, 9), st.floats(0, 1e9)),
            st.just({"event": "start", "time": 3.0}),
            st.just({"event": "asked", "nodes": ["node-1"], "trip": "train"}),
            st.just({"event": "later kinds"}),
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_no_order_of_events_breaks_the_lines(events):
    follower = Follower(9)
    for event in events:
        assert all(isinstance(line, str) for line in follower.lines(event))
        left = follower.seconds_left(1)
        assert left is None or left >= 0


def grid(tmp_path, answers, secret=False):
    def app(message, context):
        number = context.node_config["partition-id"]
        if message.metadata.message_type == "query":
            content = RecordDict({"config": ConfigRecord({"number": number})})
            return Message(content, reply_to=message)
        return Message(RecordDict({"x": ConfigRecord({"v": 1})}), reply_to=message)

    inner = InProcessGrid(app, 3)
    found = WatchedGrid(inner, ProgressFile(tmp_path), secret)
    found.send_and_receive(
        [Message(RecordDict(), dst_node_id=n, message_type="query") for n in inner.node_ids]
    )
    real = inner.pull_messages
    inner.pull_messages = lambda ids: [r for r in real(ids) if answers(r)]
    return found, inner


def protocol(inner, kind):
    content = RecordDict({"secagg": ConfigRecord({"trip": kind})})
    return [Message(content, dst_node_id=n, message_type="train") for n in inner.node_ids]


def events(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_a_protocol_s_trips_are_told_by_their_own_names(tmp_path):
    """They go by push and pull, one reply at a time."""
    lost = []
    found, inner = grid(tmp_path, lambda reply: reply.metadata.src_node_id not in lost)
    for kind in ("share", "mask"):
        ids = found.push_messages(protocol(inner, kind))
        for each in ids:
            found.pull_messages([each])
    lost.append(inner.node_ids[1])
    ids = found.push_messages(protocol(inner, "unmask"))
    found.pull_messages(ids)
    found.end_trip()
    trips = [event for event in events(tmp_path) if event["event"] == "trip"][1:]
    assert [event["trip"] for event in trips] == ["share", "mask", "unmask"]
    assert [event["silent"] for event in trips] == [[], [], ["node-2"]]
    assert all(event["asked"] == ["node-1", "node-2", "node-3"] for event in trips)
    assert all(event["upload_bytes"] > 0 for event in trips)


def test_a_node_that_is_gone_is_named_though_the_superlink_answers_for_it(tmp_path):
    """Its error comes from Flower's own id 1."""
    found, inner = grid(tmp_path, lambda reply: True)
    gone, real = inner.node_ids[2], inner._handle

    def handle(message):
        if message.metadata.dst_node_id != gone:
            return real(message)
        reply = Message(Error(5, "Message Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    inner._handle = handle
    messages = [Message(RecordDict(), dst_node_id=n, message_type="train") for n in inner.node_ids]
    found.send_and_receive(messages)
    ids = found.push_messages(protocol(inner, "mask"))
    found.pull_messages(ids)
    for told in (e for e in events(tmp_path) if e["event"] == "trip" and e["trip"] != "query"):
        assert told["refused"] == {"node-3": "not there"}
        assert told["silent"] == []
        assert told["answered"] == ["node-1", "node-2"]


def test_who_trains_under_client_level_dp_is_told_to_no_file(tmp_path):
    """ε counts on it that nobody learns who was drawn."""
    found, inner = grid(tmp_path, lambda reply: True, secret=True)
    messages = [
        Message(RecordDict(), dst_node_id=n, message_type="train") for n in inner.node_ids[:2]
    ]
    assert len(found.send_and_receive(messages)) == 2
    assert [event["trip"] for event in events(tmp_path)] == ["query", "query"]


def test_a_file_that_was_cut_off_is_mended_and_a_round_stands_in_it_once(tmp_path):
    file = ProgressFile(tmp_path)
    file.round({"round": 0})
    file.round({"round": 1})
    with (tmp_path / FILE).open("a") as half:
        half.write('{"event": "rou')
    again = ProgressFile(tmp_path, resume=True)
    for number in range(3):  # those before the resume are told again
        again.round({"round": number})
    assert [event["entry"]["round"] for event in events(tmp_path)] == [0, 1, 2]
    ProgressFile(tmp_path)
    assert not (tmp_path / FILE).exists()
