"""What a program does with EventStoreDB, through the official Python client: every call is asked for
its result. `python smoke.py CONNECTION`; run by tests/smoke/run."""

import json
import sys
import time

from esdbclient import EventStoreDBClient, NewEvent, StreamState
from esdbclient.exceptions import AlreadyExists, NotFound, StreamIsDeleted, WrongCurrentVersion

client = EventStoreDBClient(sys.argv[1])
ORDER = "order-1"


def event(n):
    return NewEvent(type="Counted", data=json.dumps({"n": n}).encode(), metadata=b'{"by": "smoke"}')


def events(count):
    return [event(n) for n in range(count)]


def revisions(seen):
    return [one.stream_position for one in seen]


def take(subscription, count, each=lambda one, n: None):
    seen = []
    for one in subscription:
        each(one, len(seen))
        seen.append(one)
        if len(seen) == count:
            subscription.stop()
            return seen


def until(what, probe):
    end = time.monotonic() + 20
    while not probe():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def raises(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def append():
    client.append_to_stream(ORDER, current_version=StreamState.NO_STREAM, events=events(3))
    raises(WrongCurrentVersion, client.append_to_stream, ORDER, current_version=0, events=event(9))
    retried = event(3)
    for _ in range(2):
        client.append_to_stream(ORDER, current_version=2, events=retried)
    assert client.get_current_version(ORDER) == 3


def read():
    forwards = client.get_stream(ORDER)
    assert revisions(forwards) == [0, 1, 2, 3]
    assert json.loads(forwards[1].data) == {"n": 1}
    assert forwards[1].metadata == b'{"by": "smoke"}'
    assert revisions(client.get_stream(ORDER, backwards=True, limit=2)) == [3, 2]
    category = client.get_stream("$ce-order", resolve_links=True)
    assert [one.stream_name for one in category] == [ORDER] * 4
    assert [one.link.stream_position for one in category] == [0, 1, 2, 3]
    # Without what the system writes: by a pattern that looks ahead.
    assert [one.stream_name for one in client.read_all()] == [ORDER] * 4
    raises(NotFound, client.get_stream, "none")


def metadata_and_deletion():
    client.append_to_stream("passing-1", current_version=StreamState.ANY, events=events(4))
    client.set_stream_metadata("passing-1", metadata={"$maxCount": 2})
    assert revisions(client.get_stream("passing-1")) == [2, 3]
    assert client.get_stream_metadata("passing-1") == ({"$maxCount": 2}, 0)
    client.delete_stream("passing-1", current_version=3)
    raises(NotFound, client.get_stream, "passing-1")
    client.append_to_stream("passing-1", current_version=StreamState.NO_STREAM, events=event(4))
    assert revisions(client.get_stream("passing-1")) == [4]
    client.tombstone_stream("passing-1", current_version=StreamState.ANY)
    raises(StreamIsDeleted, client.get_stream, "passing-1")


def catch_up():
    def more(_, n):
        if n == 1:
            client.append_to_stream(ORDER, current_version=3, events=event(4))

    assert revisions(take(client.subscribe_to_stream(ORDER, stream_position=1), 3, more)) == [2, 3, 4]
    filtered = client.subscribe_to_all(filter_include=["order-.*"], filter_by_stream_name=True)
    assert revisions(take(filtered, 5)) == [0, 1, 2, 3, 4]
    assert revisions(take(client.subscribe_to_stream("$ce-order", resolve_links=True), 5)) == [0, 1, 2, 3, 4]


def groups():
    def info():
        return client.get_subscription_info("smoke", "$ce-order")

    settings = {"resolve_links": True, "max_retry_count": 2, "min_checkpoint_count": 1}
    client.create_subscription_to_stream("smoke", "$ce-order", **settings)
    raises(AlreadyExists, client.create_subscription_to_stream, "smoke", "$ce-order", **settings)
    consumer = client.read_subscription_to_stream(
        "smoke", "$ce-order", event_buffer_size=1, max_ack_batch_size=1, max_ack_delay=0.01)
    # Of five: one acked, one sent again and acked, one parked, one skipped, one retried until it is parked.
    answers = ["ack", "retry", "ack", "park", "skip", "retry", "retry", "retry"]

    def answer(one, n):
        if answers[n] == "ack":
            consumer.ack(one)
        else:
            consumer.nack(one, answers[n])

    seen = take(consumer, len(answers), answer)
    assert revisions(seen) == [0, 1, 1, 2, 3, 4, 4, 4]
    assert [one.retry_count for one in seen] == [0, 0, 1, 0, 0, 0, 1, 2]
    until("two are parked", lambda: info().parked_message_count == 2)
    consumer = client.read_subscription_to_stream("smoke", "$ce-order")
    client.replay_parked_events("smoke", "$ce-order")
    # The first consumer may not be gone yet: then one of them comes by way of it, and later.
    assert sorted(revisions(take(consumer, 2, lambda one, _: consumer.ack(one)))) == [2, 4]
    until("all of it is done", lambda: info().parked_message_count == 0
          and info().last_checkpointed_event_position == "4")
    client.update_subscription_to_stream("smoke", "$ce-order", message_timeout=5)
    assert info().message_timeout == 5
    assert len(client.list_subscriptions()) == 1
    client.delete_subscription("smoke", "$ce-order")
    raises(NotFound, info)


def group_on_all():
    client.create_subscription_to_all("smoke", filter_include=["order-.*"], filter_by_stream_name=True)
    consumer = client.read_subscription_to_all("smoke")
    assert revisions(take(consumer, 5, lambda one, _: consumer.ack(one))) == [0, 1, 2, 3, 4]
    client.delete_subscription("smoke")


for test in [append, read, metadata_and_deletion, catch_up, groups, group_on_all]:
    test()
    print(f"python: {test.__name__} passed")
client.close()
