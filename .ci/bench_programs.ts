/**
 * The programs that bench.ts compares, how one is started and stopped, and how it
 * is loaded.
 */

// Debian's folders first: a version manager's python3 is often a shell script,
// which starts more slowly than the interpreter itself, and a slower build.
Deno.env.set("PATH", `/usr/sbin:/usr/bin:/sbin:/bin:${Deno.env.get("PATH")}`);

const root = `${import.meta.dirname}/..`;

/** `deno task bench 9 source`: for a Deno whose runtime to compile with is out of
 * reach. Rates and ratios are as a binary's; memory and starts are the CLI's. */
export const isFromSource = Deno.args[1] === "source";

const binary = await Deno.realPath(
  Deno.env.get("APPUP_BIN") ?? `${root}/appup`,
).catch(() => "");

const interrupted = interruption();

const complaints = await missing();
if (complaints.length > 0) {
  console.error(complaints.join("\n"));
  Deno.exit(2);
}

const folder = await Deno.makeTempDir({ dir: "/tmp", prefix: "appup-bench-" });
await Deno.chmod(folder, 0o755); // nginx's workers are not root.
const upFile = `${folder}/up.txt`;
const deno = Deno.execPath();
const flags = (await output(deno, "task", "-q", "--cwd", root, "flags"))
  .trim().split(/\s+/);
const floorBinary = `${folder}/floor`;
const floorSource = `${import.meta.dirname}/bench_floor.ts`;
if (!isFromSource) await compileFloor();

async function missing(): Promise<string[]> {
  const found: string[] = isFromSource || binary ? [] : [
    "There is no ./appup: `deno task compile` makes it, or name one in APPUP_BIN.",
  ];
  const packages = {
    wrk: "wrk",
    hey: "hey",
    nginx: "nginx-light",
    python3: "python3",
  };
  for (const [tool, name] of Object.entries(packages)) {
    const there = await output(tool, "--version").catch(() => undefined);
    if (there === undefined) {
      found.push(`There is no ${tool}: Debian's package ${name} brings it.`);
    }
  }
  if (Number(await output("sh", "-c", "ulimit -Hn")) < 5000) {
    found.push("There are too few descriptors for 4,000 clients: ulimit -n.");
  }
  return found;
}

/** By the Deno that runs this, and with the permissions and flags of appup. */
async function compileFloor() {
  const said = await output(
    deno,
    ...["compile", "--quiet", "--no-check", ...flags],
    ...["--output", floorBinary, floorSource],
  );
  if (exists(floorBinary)) return;
  console.error(`The least that Deno can do is not to be had: ${said}`);
  await Deno.remove(folder, { recursive: true });
  Deno.exit(2);
}

/** Whoever interrupts the benchmark ends a command, and with it the whole run. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => controller.abort("interrupted"));
  }
  return controller.signal;
}

/** All that a command says, on either stream: nginx tells its version on stderr. */
export async function output(
  command: string,
  ...args: string[]
): Promise<string> {
  const said = await new Deno.Command(command, { args, signal: interrupted })
    .output();
  interrupted.throwIfAborted();
  const decoder = new TextDecoder();
  return decoder.decode(said.stdout) + decoder.decode(said.stderr);
}

export async function setState(state: "up" | "down") {
  if (state === "up") await Deno.writeTextFile(upFile, "");
  else await Deno.remove(upFile);
}

// ---------------------------------------------------------------- The programs

export interface Program {
  name: string;
  /** What starts it; the port and the file stand in its environment too. */
  command(port: number): string[];
}

const inDeno = (source: string, binary: string) =>
  isFromSource ? [deno, "run", "--quiet", ...flags, source] : [binary];

export const appup: Program = {
  name: "appup",
  command: () => inDeno(`${root}/main.ts`, binary),
};

/** The least that Deno can do. */
export const floor: Program = {
  name: "floor",
  command: () => inDeno(floorSource, floorBinary),
};

export const nginx: Program = {
  name: "nginx",
  command(port) {
    const config = `${folder}/nginx-${port}.conf`;
    // 1024 connections, so that one worker alone could hold 1,000 that stall.
    Deno.writeTextFileSync(
      config,
      `daemon off;
      worker_processes 2;
      error_log stderr;
      pid ${folder}/nginx-${port}.pid;
      events { worker_connections 1024; }
      http {
        access_log off;
        default_type text/plain;
        server {
          listen ${port};
          root ${folder};
          location = /health { try_files /up.txt =503; }
        }
      }`,
    );
    return ["nginx", "-c", config];
  },
};

export const python: Program = {
  name: "Python",
  command: () => ["python3", `${import.meta.dirname}/bench.py`],
};

export const programs = [appup, floor, nginx, python];

// ------------------------------------------------- Starting, watching, stopping

/** How a program is started, other than as usual. */
interface Start {
  /** A command that ends by executing the one that follows it. */
  wrapper?: string[];
  env?: Record<string, string>;
}

/** How many the image's entry point allows. */
export const descriptors = /ulimit -n (\d+)/
  .exec(await Deno.readTextFile(`${root}/Dockerfile`))![1];

/** As that starts appup. */
export const fewDescriptors = [
  "sh",
  "-c",
  `ulimit -n ${descriptors}; exec "$@"`,
  "sh",
];

export class Server implements AsyncDisposable {
  static #running = new Set<Server>();

  readonly port = freePort();
  /** Bytes of anonymous memory before the first load. */
  idleMemory = 0;
  readonly #child: Deno.ChildProcess;
  #ended = false;

  private constructor(
    readonly program: Program,
    { wrapper = [], env }: Start,
  ) {
    const [command, ...args] = [...wrapper, ...program.command(this.port)];
    this.#child = new Deno.Command(command, {
      args,
      env: { UP_FILE: upFile, UP_PORT: String(this.port), ...env },
      stdin: "null",
      stdout: "null",
      // Python logs every request there.
      stderr: program === python ? "null" : "inherit",
    }).spawn();
    this.#child.status.then(() => this.#ended = true);
    Server.#running.add(this);
  }

  /** Returns once the program has answered its first 200. */
  static async start(program: Program, how: Start = {}): Promise<Server> {
    const server = new Server(program, how);
    const deadline = performance.now() + 20_000;
    while (!await server.isUp()) {
      interrupted.throwIfAborted();
      if (server.#ended || performance.now() > deadline) {
        await server[Symbol.asyncDispose]();
        throw new Error(`${program.name} does not answer`);
      }
      await sleep(1);
    }
    return server;
  }

  async isUp(): Promise<boolean> {
    try {
      using connection = await this.connect();
      return (await ask(connection)).includes(" 200 ");
    } catch {
      return false;
    }
  }

  connect(): Promise<Deno.TcpConn> {
    return Deno.connect({ hostname: "127.0.0.1", port: this.port });
  }

  /** Bytes of anonymous memory now, of all its processes together. */
  memory(): number {
    return this.#processes().reduce((total, pid) => {
      const status = Deno.readTextFileSync(`/proc/${pid}/status`);
      return total + 1024 * Number(status.match(/^RssAnon:\s+(\d+) kB$/m)![1]);
    }, 0);
  }

  async stop() {
    const processes = this.#processes();
    end(this.#child.pid, "SIGTERM");
    const late = setTimeout(
      () => processes.forEach((pid) => end(pid, "SIGKILL")),
      3000,
    );
    await this.#child.status;
    clearTimeout(late);
    Server.#running.delete(this);
  }

  [Symbol.asyncDispose] = () => this.stop();

  /** For the end of everything. */
  static async stopAll() {
    await Promise.all([...Server.#running].map((server) => server.stop()));
    await Deno.remove(folder, { recursive: true });
  }

  #processes(): number[] {
    const { pid } = this.#child;
    try {
      const list = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`);
      return [pid, ...list.split(" ").filter(Boolean).map(Number)];
    } catch {
      return [pid];
    }
  }
}

function end(pid: number, signal: Deno.Signal) {
  try {
    Deno.kill(pid, signal);
  } catch {
    // It has ended already.
  }
}

function freePort(): number {
  using listener = Deno.listen({ port: 0 });
  return listener.addr.port;
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// --------------------------------------------------------------------- Loading

const request = (path: string) =>
  `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`;

export async function ask(
  connection: Deno.TcpConn,
  path = "/health",
): Promise<string> {
  await connection.write(new TextEncoder().encode(request(path)));
  const answer = new Uint8Array(1024);
  const length = await connection.read(answer) ?? 0;
  return new TextDecoder().decode(answer.subarray(0, length));
}

export interface Connections extends Disposable {
  list: Deno.TcpConn[];
}

export async function connections(
  server: Server,
  count: number,
): Promise<Connections> {
  const list: Deno.TcpConn[] = [];
  while (list.length < count) list.push(await server.connect());
  return {
    list,
    [Symbol.dispose]: () => list.forEach((connection) => connection.close()),
  };
}

/** Clients that come at once, send half a request, and hold on. */
export async function stall(
  server: Server,
  count: number,
): Promise<Disposable> {
  const half = new TextEncoder().encode(request("/health").slice(0, 20));
  const held: Deno.TcpConn[] = [];
  let isOver = false;
  const clients = Array.from({ length: count }, async () => {
    const connection = await server.connect();
    if (isOver) return connection.close();
    held.push(connection);
    await connection.write(half);
  });
  // A full server lets some of them wait for ever.
  await Promise.race([Promise.allSettled(clients), sleep(1000)]);
  return {
    [Symbol.dispose]() {
      isOver = true;
      for (const connection of held) connection.close();
    },
  };
}

/** How many of ten probes, one a second, get their 200 within that second. */
export async function probe(server: Server): Promise<number> {
  let answered = 0;
  for (let count = 0; count < 10; count++) {
    const isOver = sleep(1000).then(() => false);
    answered += +await Promise.race([server.isUp(), isOver]);
    await isOver;
  }
  return answered;
}

export interface Load {
  clients: number;
  /** As a kubelet asks: on a connection for each request. */
  likeKubelet?: boolean;
  expect?: number;
}

export interface Outcome {
  perSecond: number;
  /** 99th percentile of the time to an answer, in milliseconds. */
  percentile: number;
}

/** What was odd about a load, for the reader of the table. */
export const oddities: string[] = [];

/**
 * For a second, kept-alive connections by wrk, which takes the least of the
 * processor; one thread of it is enough for all programs, a second would take
 * the servers' time. A connection per request by hey, whose client is Go's
 * net/http, as a kubelet's is. Its times are told to a tenth of a millisecond.
 */
export async function load(
  { program, port }: Server,
  { clients, likeKubelet = false, expect = 200 }: Load,
): Promise<Outcome> {
  const url = `http://127.0.0.1:${port}/health`;
  const report = likeKubelet
    ? await hey(url, expect, "-disable-keepalive", `-c=${clients}`, "-z=1s")
    : await wrk(url, expect, clients);
  return review(report, `${program.name}, ${clients} clients`, expect);
}

export interface Flood {
  path: string;
  header?: string;
  expect: number;
}

/** So many requests on 16 kept-alive connections, as fast as they are answered. */
export async function flood(
  { program, port }: Server,
  count: number,
  { path, header = "Accept: */*", expect }: Flood,
) {
  const url = `http://127.0.0.1:${port}${path}`;
  const status = program === floor ? 200 : expect; // it knows no other
  const report = await hey(url, status, "-c=16", `-n=${count}`, `-H=${header}`);
  const what = `${program.name}, ${count} of ${path}`;
  review(report, what, status);
  if (report.answers < count) throw new Error(`${what}: ${report.answers}`);
}

type Report = Outcome & {
  answers: number;
  /** How many of them had the status that was expected. */
  expected: number;
  errors?: string;
};

/** Notes what was odd. A program that never answers has no rate, and no end. */
function review(
  { answers, expected, errors, ...outcome }: Report,
  what: string,
  expect: number,
): Outcome {
  if (answers > expected) {
    oddities.push(`${what}: ${answers - expected} answers not ${expect}`);
  }
  if (errors && answers > 0) oddities.push(`${what}: ${errors}`);
  return answers > 0 ? outcome : { perSecond: 0, percentile: Infinity };
}

async function wrk(
  url: string,
  expect: number,
  clients: number,
): Promise<Report> {
  const text = await output(
    "wrk",
    "--threads=1",
    `--connections=${clients}`,
    "--duration=1s",
    "--latency",
    url,
  );
  const number = (pattern: RegExp) => Number(text.match(pattern)?.[1] ?? 0);
  const answers = number(/(\d+) requests in/);
  const not200 = number(/Non-2xx or 3xx responses: (\d+)/);
  const [, time, unit] = text.match(/99%\s+([\d.]+)(us|ms|s|m)\b/) ?? [];
  const factor = { us: 0.001, ms: 1, s: 1000, m: 60_000 }[unit] ?? NaN;
  return {
    perSecond: number(/Requests\/sec:\s+([\d.]+)/),
    percentile: Number(time) * factor,
    answers,
    expected: expect === 200 ? answers - not200 : not200,
    errors: text.match(/Socket errors: .*/)?.[0],
  };
}

async function hey(
  url: string,
  expect: number,
  ...options: string[]
): Promise<Report> {
  const text = await output("hey", "-t=2", ...options, url);
  const number = (pattern: RegExp) => Number(text.match(pattern)?.[1] ?? 0);
  const codes = [...text.matchAll(/\[(\d+)\]\s+(\d+) responses/g)]
    .map(([, code, count]) => [Number(code), Number(count)]);
  return {
    perSecond: number(/Requests\/sec:\s+([\d.]+)/),
    percentile: number(/99% in ([\d.]+) secs/) * 1000,
    answers: codes.reduce((sum, [, count]) => sum + count, 0),
    expected: codes.find(([code]) => code === expect)?.[1] ?? 0,
    errors: text.match(/Error distribution:\s+(.*)/)?.[1],
  };
}

// ------------------------------------------------------------------- A cgroup

/** Processes that may use so much memory together, and no swap; version 1 or 2. */
export class Cgroup implements AsyncDisposable {
  readonly #unified = exists("/sys/fs/cgroup/cgroup.controllers");
  readonly #folder = this.#unified
    ? `/sys/fs/cgroup/appup-bench-${Deno.pid}`
    : `/sys/fs/cgroup/memory/appup-bench-${Deno.pid}`;

  constructor(bytes: number) {
    Deno.mkdirSync(this.#folder);
    try {
      if (this.#unified) {
        this.#write("memory.max", bytes);
        this.#write("memory.swap.max", 0);
      } else {
        this.#write("memory.limit_in_bytes", bytes);
        this.#write("memory.memsw.limit_in_bytes", bytes);
      }
    } catch (error) {
      Deno.removeSync(this.#folder);
      throw error;
    }
  }

  /** A wrapper that starts a program inside. */
  get wrapper(): string[] {
    const script = 'echo $$ > "$0" && exec "$@"';
    return ["sh", "-c", script, `${this.#folder}/cgroup.procs`];
  }

  peak(): number {
    return Number(
      this.#read(this.#unified ? "memory.peak" : "memory.max_usage_in_bytes"),
    );
  }

  kills(): number {
    const events = this.#read(
      this.#unified ? "memory.events" : "memory.oom_control",
    );
    return Number(events.match(/^oom_kill (\d+)$/m)![1]);
  }

  #read(file: string): string {
    return Deno.readTextFileSync(`${this.#folder}/${file}`);
  }

  #write(file: string, value: number) {
    Deno.writeTextFileSync(`${this.#folder}/${file}`, String(value), {
      create: false,
    });
  }

  async [Symbol.asyncDispose]() {
    // The kernel lets an ended process go a moment later.
    for (let tries = 100; exists(this.#folder) && tries > 0; tries--) {
      await Deno.remove(this.#folder).catch(() => sleep(10));
    }
  }
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path) !== undefined;
  } catch {
    return false;
  }
}
