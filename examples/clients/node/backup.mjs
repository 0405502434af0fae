// Change a setting, start a backup and watch it to its end: node backup.mjs [SOCKET]. No packages.
import { randomUUID } from "node:crypto";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const PATH = process.argv[2] ?? "/run/deviceon-backup/service.sock";
const ENDED = new Set(["succeeded", "partial", "failed", "cancelled", "interrupted"]);

/** The service's own answer. Decide by `code`; show message and `hint` to people. */
class Refused extends Error {
  constructor({ code, message, hint, transient }) {
    super(message);
    Object.assign(this, { code, hint, transient });
  }
}

/** The connection broke, or a call was not answered: connect again. */
class Lost extends Error {}

/** One connection. Calls may run at the same time. */
class Service {
  #socket;
  #number = 0;
  #waiting = new Map();
  #events = [];
  #wake = () => {};
  #lost = null;

  constructor(path) {
    this.#socket = connect(path);
    this.#socket.setEncoding("utf8"); // a character may come in two pieces
    let rest = "";
    this.#socket.on("data", (piece) => {
      const lines = (rest + piece).split("\n");
      rest = lines.pop(); // a line may come in many pieces, and many lines in one
      for (const line of lines) this.#take(JSON.parse(line));
    });
    this.#socket.on("error", (error) => this.#lose(error.message));
    this.#socket.on("close", () => this.#lose("the service closed the connection"));
  }

  /** Return the result of a method. */
  call(method, params = {}) {
    const id = ++this.#number;
    return new Promise((resolve, reject) => {
      if (this.#lost) return reject(this.#lost);
      const timer = setTimeout(() => this.#lose(`no answer to ${method}`), 60_000);
      this.#waiting.set(id, (settle, value) => {
        clearTimeout(timer);
        this.#waiting.delete(id);
        (settle ? resolve : reject)(value);
      });
      this.#socket.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
    });
  }

  /** Yield events as they come, after `events.subscribe`. */
  async *events() {
    for (;;) {
      while (this.#events.length > 0) yield this.#events.shift();
      if (this.#lost) throw this.#lost;
      await new Promise((wake) => (this.#wake = wake));
    }
  }

  close() {
    this.#socket.destroy();
  }

  #take(message) {
    if (message.method === "event") {
      this.#events.push(message.params);
      this.#wake();
    } else if (message.id === null) {
      this.#lose(message.error.message); // the answer to no request: no event comes any more
    } else if (message.error) {
      this.#waiting.get(message.id)?.(false, new Refused(message.error.data));
    } else {
      this.#waiting.get(message.id)?.(true, message.result);
    }
  }

  #lose(why) {
    this.#lost ??= new Lost(why);
    for (const answer of [...this.#waiting.values()]) answer(false, this.#lost);
    this.#wake();
    this.#socket.destroy();
  }
}

/** Start one backup, whatever happens to the connection, and return its job when it has ended. */
async function backup() {
  const key = randomUUID(); // the same for each try: however often it is asked, there is one job
  let seen = null;
  let boot = null;
  let job = null;
  for (;;) {
    const service = new Service(PATH);
    try {
      const told = await service.call("events.subscribe", { since: seen });
      const missed = told.gap || (boot !== null && told.boot_id !== boot);
      boot = told.boot_id;
      if (seen === null || told.gap) seen = told.seq;
      if (job === null) {
        job = await service.call("backup.start", { idempotency_key: key });
        console.log(`job ${job.id}`);
      }
      if (missed) {
        // Events are lost, or the service was started anew.
        job = await service.call("job.get", { id: job.id });
        if (ENDED.has(job.state)) return job;
      }
      for await (const event of service.events()) {
        if (event.seq !== null) seen = event.seq;
        if (event.job_id !== job.id) continue;
        if (event.type === "progress") {
          console.error(`${event.data.stage}: ${event.data.raw_bytes} bytes`);
          continue;
        }
        console.log(event.type);
        if (ENDED.has(event.data.state)) return event.data;
      }
    } catch (error) {
      if (!(error instanceof Lost)) throw error;
      console.error(`connection lost (${error.message})`);
      console.log(`connecting again, for what came after event ${seen}`);
      await sleep(1000);
    } finally {
      service.close();
    }
  }
}

const service = new Service(PATH);
const info = await service.call("system.info");
console.log(`${info.product}, backup service ${info.version}: ${info.not_ready ?? "ready"}`);
const found = await service.call("settings.get");
if (found.fixed.includes("retention")) {
  console.log("retention is fixed by the configuration file");
} else {
  const changed = await service.call("settings.update", {
    retention: { keep_last: 14 },
    idempotency_key: randomUUID(),
  });
  console.log(`archives that are kept: ${changed.settings.retention.keep_last}`);
}
try {
  await service.call("job.get", { id: "0000000000000000" });
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.log(`refused: ${error.code}: ${error.message}`);
}
service.close();

const job = await backup();
if (job.state === "succeeded") {
  console.log(`succeeded: ${job.result.name}`);
} else {
  console.log(`${job.state}: ${job.error.code}: ${job.error.message} ${job.error.hint}`);
  process.exitCode = 1;
}
