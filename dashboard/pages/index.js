// @ts-check
/**
 * The pages, in the order of the rail. A page is a module whose default export is a component:
 * `export default function Page({ params, query })`. It is loaded when it is opened.
 */

/**
 * @typedef {object} PageEntry
 * @property {string} path of the fragment; `:id` is a parameter
 * @property {string} title
 * @property {string} [key] after `g`
 * @property {boolean} [inRail]
 * @property {string} [scope] without it, the rail doesn't have the page
 * @property {boolean} [ofAll] it shows all projects, so the rail doesn't have it for a key of one project
 * @property {() => Promise<{ default: any }>} load
 */

/** @type {PageEntry[]} */
export const PAGES = [
  { path: "", title: "Home", key: "h", inRail: true, load: () => import("./home.js") },
  { path: "tasks", title: "Tasks", key: "t", inRail: true, load: () => import("./tasks.js") },
  { path: "tasks/:id", title: "Task", load: () => import("./task.js") },
  { path: "failures", title: "Failures", key: "f", inRail: true, ofAll: true, load: () => import("./failures.js") },
  { path: "failures/:fingerprint", title: "Failure", load: () => import("./failure.js") },
  { path: "queues", title: "Queues", key: "q", inRail: true, load: () => import("./queues.js") },
  { path: "queues/:name", title: "Queue", load: () => import("./queue.js") },
  { path: "workers", title: "Workers", key: "w", inRail: true, ofAll: true, scope: "tasks:read", load: () => import("./workers.js") },
  { path: "types", title: "Types", key: "y", inRail: true, load: () => import("./types.js") },
  { path: "types/:name", title: "Type", load: () => import("./type.js") },
  { path: "schedules", title: "Schedules", key: "s", inRail: true, load: () => import("./schedules.js") },
  { path: "schedules/:name", title: "Schedule", load: () => import("./schedule.js") },
  { path: "workflows", title: "Workflows", key: "l", inRail: true, load: () => import("./workflows.js") },
  { path: "workflows/:id", title: "Workflow", load: () => import("./workflow.js") },
  { path: "webhooks", title: "Webhooks", key: "b", inRail: true, scope: "admin", load: () => import("./webhooks.js") },
  { path: "webhooks/:id", title: "Webhook", load: () => import("./webhook.js") },
  { path: "keys", title: "Keys", key: "k", inRail: true, scope: "admin", load: () => import("./keys.js") },
  { path: "audit", title: "Audit", key: "a", inRail: true, scope: "admin", load: () => import("./audit.js") },
];
