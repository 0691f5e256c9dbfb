// One worker process: `node worker.mjs REDIS_URL QUEUE CONCURRENCY`. It works until it gets SIGTERM.
import { Worker } from "bullmq";

const [url, queue, concurrency] = process.argv.slice(2);
const worker = new Worker(queue, async (job) => ({ n: job.data.n + 1 }), {
  connection: { url },
  concurrency: Number(concurrency),
});
worker.on("error", console.error);
process.once("SIGTERM", () => worker.close());
