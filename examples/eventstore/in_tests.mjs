// An EventStoreDB inside a test, for Node: `projector stack` runs as a child of the test.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { EventStoreDBClient, jsonEvent, persistentSubscriptionToStreamSettingsFromDefaults } from "@eventstore/db-client";

const stack = spawn(process.env.PROJECTOR ?? "projector", ["stack", "--eventstore-port", "0", "--dynamodb-port", "0"]);
let connection;
for await (const line of createInterface({ input: stack.stdout })) {
  connection ??= line.match(/^PROJECTOR__EVENTSTORE__CONNECTION=(.*)/)?.[1];
  if (line.startsWith("PROJECTOR__DYNAMODB__ENDPOINT=")) break;
}
const client = EventStoreDBClient.connectionString(connection);
try {
  await client.appendToStream("order-1", jsonEvent({ type: "OrderPlaced", data: { total: 7 } }));

  await client.createPersistentSubscriptionToStream("$ce-order", "test",
    persistentSubscriptionToStreamSettingsFromDefaults({ startFrom: "start", resolveLinkTos: true }));
  const orders = client.subscribeToPersistentSubscriptionToStream("$ce-order", "test");
  for await (const resolved of orders) {
    assert.equal(resolved.event.data.total, 7);
    await orders.ack(resolved);
    break;
  }
} finally {
  await client.dispose();
  stack.kill();
}
