"""An EventStoreDB inside a test, for Python: `projector stack` runs as a child of the test."""

import os
import subprocess

from esdbclient import EventStoreDBClient, NewEvent, StreamState

stack = subprocess.Popen(
    [os.environ.get("PROJECTOR", "projector"), "stack", "--eventstore-port", "0", "--dynamodb-port", "0"],
    stdout=subprocess.PIPE,
    text=True,
)
try:
    connection = None
    for line in stack.stdout:
        name, _, value = line.strip().partition("=")
        if name == "PROJECTOR__EVENTSTORE__CONNECTION":
            connection = value
        if name == "PROJECTOR__DYNAMODB__ENDPOINT":
            break
    client = EventStoreDBClient(connection)
    event = NewEvent(type="OrderPlaced", data=b'{"total": 7}')
    client.append_to_stream("order-1", current_version=StreamState.NO_STREAM, events=[event])

    client.create_subscription_to_stream("test", "$ce-order", resolve_links=True)
    orders = client.read_subscription_to_stream("test", "$ce-order")
    for placed in orders:
        assert placed.data == b'{"total": 7}'
        orders.ack(placed)
        orders.stop()
    client.close()
finally:
    stack.terminate()
    stack.wait()
