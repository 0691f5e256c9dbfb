// Reads a stream of events with the npm package `eventsource`, and prints each message as a line of JSON.
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);
const print = (what) => console.log(JSON.stringify(what));

for (const name of names) {
  source.addEventListener(name, ({ type, lastEventId, data }) => print({ type, id: lastEventId, data }));
}
source.onerror = ({ code }) => {
  if (source.readyState === EventSource.CLOSED) print({ type: "closed", id: "", data: String(code) });
};
