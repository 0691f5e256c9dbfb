// Submits, waits, lists, stops and batches with the types of openapi-typescript. Prints what it got as JSON.
import createClient from "openapi-fetch";

import type { components, paths } from "./types.js";

type Schemas = components["schemas"];

const client = createClient<paths>({ baseUrl: process.argv[2]! });

function data<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

async function ended(id: string): Promise<Schemas["Task"]> {
  return data(await client.GET("/tasks/{id}", { params: { path: { id }, query: { wait: 30 } } }));
}

// Fields with a default are left out: they aren't required.
const parcel: Schemas["parcels.send.payload"] = { to: { street: "Lane", colour: "blue" } };
const tree: Schemas["Node"] = { name: "root", children: [{ name: "leaf", children: [{ name: "last" }] }] };

const sent = data(await client.POST("/tasks", { body: { type: "parcels.send", payload: parcel } }));
const batch = data(
  await client.POST("/tasks/batch", {
    body: {
      tasks: [
        { type: "tree.count", payload: { root: tree } },
        { type: "area", payload: { shape: { type: "circle", radius: 2 } } },
        { type: "order", payload: { items: [{ name: "hat" }], pet: { kind: "dog", friend: { kind: "cat" } } } },
        { type: "mail", payload: { to: { mailbox: "me" } } },
      ],
    },
  }),
);
const endless = data(await client.POST("/tasks", { body: { type: "until_stopped", payload: {} } }));
data(await client.POST("/tasks/{id}/stop", { params: { path: { id: endless.id } }, body: { grace_s: 5 } }));

const first = await ended(sent.id);
const rest = await Promise.all(batch.tasks.map((each) => ended(each.id)));
const stopped = await ended(endless.id);
const listed = data(await client.GET("/tasks", { params: { query: { type: "parcels.send" } } }));

console.log(
  JSON.stringify({
    results: [first, ...rest].map((each) => each.result),
    statuses: [first, ...rest, stopped].map((each) => each.status),
    listed: listed.tasks.some((each) => each.id === sent.id),
  }),
);
