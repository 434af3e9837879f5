// How often a conflict names a revision that the leader does not show yet, and for how long; and whether
// a success ever names one that it does not show. Half of the writers append blindly at short random
// intervals; the others append where they believe the end to be and look for themselves at every answer.
// Prints one JSON line. Exits with 1 when something acknowledged could not be read, or something named
// was still invisible after five seconds.
//
//     node conflicts.mjs CONNECTION SECONDS WRITERS
import * as db from "@eventstore/db-client";
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

const [connection, seconds, writers] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
// What stays invisible that long is taken for lost: EventStoreDB gives an append up after half of it.
const PATIENCE_MS = 5_000;
// Blind writers' longest pause: some are always under way, and the stream does not run away.
const PAUSE_MS = 3;
const stream = `conflicts-${randomUUID()}`;
const until = performance.now() + seconds * 1_000;
const found = { conflicts: 0, behind: 0, longest_ms: 0, never: 0, acknowledged: 0, unreadable: 0, failed: 0 };
const connect = () => db.EventStoreDBClient.connectionString(connection);
const event = () => db.jsonEvent({ type: "written", data: {} });
// The looks go over a connection of their own, as another process's would.
const looker = connect();

async function end() {
    const newest = { direction: db.BACKWARDS, fromRevision: db.END, maxCount: 1, requiresLeader: true };
    for await (const { event } of looker.readStream(stream, newest)) return event.revision;
}

async function blind() {
    const client = connect();
    while (performance.now() < until) {
        await client.appendToStream(stream, event()).catch(() => found.failed++);
        await pause(Math.random() * PAUSE_MS);
    }
}

async function careful() {
    const client = connect();
    let at = await end();
    while (performance.now() < until) {
        let named;
        try {
            const { nextExpectedRevision } = await client.appendToStream(stream, event(), { expectedRevision: at });
            found.acknowledged++;
            at = await end();
            if (at < nextExpectedRevision) found.unreadable++;
            continue;
        } catch (error) {
            if (error.type !== db.ErrorType.WRONG_EXPECTED_VERSION) {
                found.failed++;
                at = await end();
                continue;
            }
            named = error.actualVersion;
        }
        found.conflicts++;
        const from = performance.now();
        at = await end();
        if (at >= named) continue;
        found.behind++;
        while (at < named && performance.now() - from < PATIENCE_MS) at = await end();
        if (at < named) found.never++;
        else found.longest_ms = Math.max(found.longest_ms, Math.round((performance.now() - from) * 10) / 10);
    }
}

await looker.appendToStream(stream, event());
await Promise.all(Array.from({ length: writers }, (_, number) => (number % 2 === 0 ? careful() : blind())));
console.log(JSON.stringify(found));
process.exit(found.unreadable + found.never > 0 ? 1 : 0);
