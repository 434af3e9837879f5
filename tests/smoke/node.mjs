// What a program does with EventStoreDB, through the official Node client: every call is asked for its
// result. `node node.mjs CONNECTION`; run by tests/smoke/run.
import assert from "node:assert/strict";
import * as db from "@eventstore/db-client";

const client = db.EventStoreDBClient.connectionString(process.argv[2]);
const ORDER = "order-1";
const event = (n, type = "Counted") => db.jsonEvent({ type, data: { n }, metadata: { by: "smoke" } });
const events = (count) => Array.from({ length: count }, (_, n) => event(n));

async function all(reading) {
  const seen = [];
  for await (const resolved of reading) seen.push(resolved);
  return seen;
}

/** The next `count` of a subscription, each handed to `each`. */
async function take(subscription, count, each = async () => {}) {
  const seen = [];
  for await (const resolved of subscription) {
    await each(resolved, seen.length);
    seen.push(resolved);
    if (seen.length === count) break;
  }
  await subscription.unsubscribe();
  return seen;
}

async function until(what, probe) {
  const end = Date.now() + 20_000;
  while (!(await probe())) {
    assert.ok(Date.now() < end, what);
    await new Promise((done) => setTimeout(done, 50));
  }
}

const revisions = (seen) => seen.map(({ event }) => Number(event.revision));

const suite = {
  async append() {
    const first = await client.appendToStream(ORDER, events(3), { expectedRevision: db.NO_STREAM });
    assert.equal(first.nextExpectedRevision, 2n);
    await assert.rejects(client.appendToStream(ORDER, event(9), { expectedRevision: 0n }), (error) => {
      assert.equal(error.type, db.ErrorType.WRONG_EXPECTED_VERSION);
      assert.equal(error.actualVersion, 2n);
      return true;
    });
    const retried = event(3);
    for (let time = 0; time < 2; time++) {
      const { nextExpectedRevision } = await client.appendToStream(ORDER, retried, { expectedRevision: 2n });
      assert.equal(nextExpectedRevision, 3n);
    }
  },

  async read() {
    const forwards = await all(client.readStream(ORDER));
    assert.deepEqual(revisions(forwards), [0, 1, 2, 3]);
    assert.deepEqual(forwards[1].event.data, { n: 1 });
    assert.deepEqual(forwards[1].event.metadata, { by: "smoke" });
    const backwards = client.readStream(ORDER, { direction: db.BACKWARDS, fromRevision: db.END, maxCount: 2 });
    assert.deepEqual(revisions(await all(backwards)), [3, 2]);
    const category = await all(client.readStream("$ce-order", { resolveLinkTos: true }));
    assert.deepEqual(category.map(({ event }) => event.streamId), Array(4).fill(ORDER));
    assert.ok((await all(client.readAll())).length >= 8);
    await assert.rejects(all(client.readStream("none")), { type: db.ErrorType.STREAM_NOT_FOUND });
  },

  async metadata_and_deletion() {
    await client.appendToStream("passing-1", events(4));
    await client.setStreamMetadata("passing-1", { maxCount: 2 });
    assert.deepEqual(revisions(await all(client.readStream("passing-1"))), [2, 3]);
    assert.deepEqual((await client.getStreamMetadata("passing-1")).metadata, { maxCount: 2 });
    await client.deleteStream("passing-1");
    await assert.rejects(all(client.readStream("passing-1")), { type: db.ErrorType.STREAM_NOT_FOUND });
    await client.appendToStream("passing-1", event(4));
    assert.deepEqual(revisions(await all(client.readStream("passing-1"))), [4]);
    await client.tombstoneStream("passing-1");
    await assert.rejects(client.appendToStream("passing-1", event(5)), { type: db.ErrorType.STREAM_DELETED });
  },

  async catch_up() {
    const stream = client.subscribeToStream(ORDER, { fromRevision: 1n });
    const taken = take(stream, 3, async (_, n) => {
      if (n === 1) await client.appendToStream(ORDER, event(4));
    });
    assert.deepEqual(revisions(await taken), [2, 3, 4]);
    const filter = db.streamNameFilter({ prefixes: ["order-"] });
    const filtered = await take(client.subscribeToAll({ fromPosition: db.START, filter }), 5);
    assert.deepEqual(revisions(filtered), [0, 1, 2, 3, 4]);
  },

  async groups() {
    const info = () => client.getPersistentSubscriptionToStreamInfo("$ce-order", "smoke");
    const settings = { startFrom: db.START, resolveLinkTos: true, maxRetryCount: 2, checkPointLowerBound: 1 };
    await client.createPersistentSubscriptionToStream(
      "$ce-order", "smoke", db.persistentSubscriptionToStreamSettingsFromDefaults(settings));
    await assert.rejects(
      client.createPersistentSubscriptionToStream(
        "$ce-order", "smoke", db.persistentSubscriptionToStreamSettingsFromDefaults(settings)),
      { type: db.ErrorType.PERSISTENT_SUBSCRIPTION_EXISTS });
    let consumer = client.subscribeToPersistentSubscriptionToStream("$ce-order", "smoke", { bufferSize: 1 });
    // Of five: one acked, one sent again and acked, one parked, one skipped, one retried until it is parked.
    const answers = [
      (one) => consumer.ack(one),
      (one) => consumer.nack(db.RETRY, "again", one),
      (one) => consumer.ack(one),
      (one) => consumer.nack(db.PARK, "poison", one),
      (one) => consumer.nack(db.SKIP, "never mind", one),
      (one) => consumer.nack(db.RETRY, "again", one),
      (one) => consumer.nack(db.RETRY, "again", one),
      (one) => consumer.nack(db.RETRY, "again", one),
    ];
    const seen = await take(consumer, answers.length, (one, n) => answers[n](one));
    assert.deepEqual(revisions(seen), [0, 1, 1, 2, 3, 4, 4, 4]);
    assert.deepEqual(seen.map(({ retryCount }) => retryCount), [0, 0, 1, 0, 0, 0, 1, 2]);
    await until("two are parked", async () => Number((await info()).stats.parkedMessageCount) === 2);
    const parked = await all(client.readStream("$persistentsubscription-$ce-order::smoke-parked"));
    assert.equal(parked[0].event.metadata.reason, "Client explicitly NAK'ed message.\npoison");
    await until("the first consumer is gone", async () => (await info()).connections.length === 0);
    consumer = client.subscribeToPersistentSubscriptionToStream("$ce-order", "smoke", { bufferSize: 10 });
    await client.replayParkedMessagesToStream("$ce-order", "smoke");
    const replayed = await take(consumer, 2, (one) => consumer.ack(one));
    assert.deepEqual(revisions(replayed), [2, 4]);
    await until("all of it is done", async () => {
      const { stats } = await info();
      return Number(stats.parkedMessageCount) === 0 && Number(stats.lastCheckpointedEventRevision) === 4;
    });
    await client.updatePersistentSubscriptionToStream(
      "$ce-order", "smoke", db.persistentSubscriptionToStreamSettingsFromDefaults({ ...settings, messageTimeout: 5_000 }));
    assert.equal((await info()).settings.messageTimeout, 5_000);
    assert.equal((await client.listAllPersistentSubscriptions()).length, 1);
    await client.deletePersistentSubscriptionToStream("$ce-order", "smoke");
    await assert.rejects(info(), { type: db.ErrorType.PERSISTENT_SUBSCRIPTION_DOES_NOT_EXIST });
  },

  async group_on_all() {
    const filter = db.streamNameFilter({ prefixes: ["order-"] });
    await client.createPersistentSubscriptionToAll(
      "smoke", db.persistentSubscriptionToAllSettingsFromDefaults({ startFrom: db.START }), { filter });
    const consumer = client.subscribeToPersistentSubscriptionToAll("smoke");
    assert.deepEqual(revisions(await take(consumer, 5, (one) => consumer.ack(one))), [0, 1, 2, 3, 4]);
    await client.deletePersistentSubscriptionToAll("smoke");
  },
};

for (const [name, test] of Object.entries(suite)) {
  await test();
  console.log(`node: ${name} passed`);
}
await client.dispose();
process.exit(0);
