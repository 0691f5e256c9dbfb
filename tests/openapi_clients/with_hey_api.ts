// The same as with_openapi_typescript.ts, with the client of @hey-api/openapi-ts.
import { client } from "./hey/client.gen.js";
import { getTask, listTasks, stopTask, submitBatch, submitTask } from "./hey/sdk.gen.js";
import type { Node, ParcelsSendPayload, Task } from "./hey/types.gen.js";

client.setConfig({ baseUrl: process.argv[2]! });

const throwOnError = true as const;

async function ended(id: string): Promise<Task> {
  return (await getTask({ throwOnError, path: { id }, query: { wait: 30 } })).data;
}

const parcel: ParcelsSendPayload = { to: { street: "Lane", colour: "blue" } };
const tree: Node = { name: "root", children: [{ name: "leaf", children: [{ name: "last" }] }] };

const sent = (await submitTask({ throwOnError, body: { type: "parcels.send", payload: parcel } })).data;
const batch = (
  await submitBatch({
    throwOnError,
    body: {
      tasks: [
        { type: "tree.count", payload: { root: tree } },
        { type: "area", payload: { shape: { type: "circle", radius: 2 } } },
        { type: "order", payload: { items: [{ name: "hat" }], pet: { kind: "dog", friend: { kind: "cat" } } } },
        { type: "mail", payload: { to: { mailbox: "me" } } },
      ],
    },
  })
).data;
const endless = (await submitTask({ throwOnError, body: { type: "until_stopped", payload: {} } })).data;
await stopTask({ throwOnError, path: { id: endless.id }, body: { grace_s: 5 } });

const first = await ended(sent.id);
const rest = await Promise.all(batch.tasks.map((each) => ended(each.id)));
const stopped = await ended(endless.id);
const listed = (await listTasks({ throwOnError, query: { type: "parcels.send" } })).data;

console.log(
  JSON.stringify({
    results: [first, ...rest].map((each) => each.result),
    statuses: [first, ...rest, stopped].map((each) => each.status),
    listed: listed.tasks.some((each) => each.id === sent.id),
  }),
);
