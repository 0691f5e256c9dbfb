// Adds jobs and reads their results: `node producer.mjs REDIS_URL QUEUE`. Each line of its input is a request,
// [verb, argument] as JSON, and gets a line of JSON as its answer. It ends with its input.
import { createInterface } from "node:readline";
import { Job, Queue } from "bullmq";

const NAME = "increment";
const CHUNK = 1000; // of addBulk, which is slower with 5,000 jobs
const [url, name] = process.argv.slice(2);
const queue = new Queue(name, { connection: { url } });
queue.on("error", console.error);

const verbs = {
  /** Add one job a number, one after the other. Returns their ids. */
  async add(numbers) {
    const ids = [];
    for (const n of numbers) ids.push((await queue.add(NAME, { n })).id);
    return ids;
  },
  /** Add one job a number, in bulk. Returns their ids. */
  async addBulk(numbers) {
    const ids = [];
    for (let start = 0; start < numbers.length; start += CHUNK) {
      const chunk = numbers.slice(start, start + CHUNK);
      const jobs = await queue.addBulk(chunk.map((n) => ({ name: NAME, data: { n } })));
      for (const job of jobs) ids.push(job.id);
    }
    return ids;
  },
  /** What the job returned; null while it hasn't. */
  async result(id) {
    return (await Job.fromId(queue, id))?.returnvalue ?? null;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [verb, argument] = JSON.parse(line);
  console.log(JSON.stringify(await verbs[verb](argument)));
}
await queue.close();
