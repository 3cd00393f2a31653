/**
 * What appup costs, beside a bare Deno server (the floor), nginx and a program
 * like the Python original. `deno task bench` prints one table in Markdown.
 * `deno task bench 3` takes three rounds instead of nine.
 *
 * appup runs from source, with the Deno that runs this and the flags that ship.
 * APPUP_BIN names a binary to run instead; the floor stays from source.
 *
 * Each round starts all programs anew and measures each figure on all of them,
 * one right after the other. So a busy moment of the machine meets all of them.
 */

// Debian's folders first: a version manager's python3 is often a slow wrapper.
Deno.env.set("PATH", `/usr/sbin:/usr/bin:/sbin:/bin:${Deno.env.get("PATH")}`);

const rounds = Number(Deno.args[0] ?? 9);
const here = import.meta.dirname!;
const folder = await Deno.makeTempDir({ dir: "/tmp", prefix: "appup-bench-" });
await Deno.chmod(folder, 0o755); // nginx's workers are not root
const upFile = `${folder}/up.txt`;

async function output(command: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await new Deno.Command(command, { args }).output();
  const decoder = new TextDecoder();
  return decoder.decode(stdout) + decoder.decode(stderr);
}

const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

const median = (numbers: number[]) =>
  numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

// --- The programs ------------------------------------------------------------

interface Program {
  name: string;
  command(port: number): string[];
}

const deno = Deno.execPath();
const flags = await output(deno, "task", "-q", "--cwd", here, "flags");
const inDeno = (
  source: string,
) => [deno, "run", "--quiet", ...flags.trim().split(/\s+/), source];
const binary = Deno.env.get("APPUP_BIN");

const appup: Program = {
  name: "appup",
  command: () => binary ? [binary] : inDeno(`${here}/../main.ts`),
};
const floor: Program = {
  name: "floor",
  command: () => inDeno(`${here}/bench_floor.ts`),
};
const nginx: Program = { name: "nginx", command: nginxCommand };
const python: Program = {
  name: "Python",
  command: () => ["python3", `${here}/bench.py`],
};
const programs = [appup, floor, nginx, python];

function nginxCommand(port: number): string[] {
  const config = `${folder}/nginx-${port}.conf`;
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
}

/** A running program. */
class Server {
  private static running = new Set<Server>();
  readonly port = freePort();
  readonly url = `http://127.0.0.1:${this.port}`;
  /** In bytes, before the first load. */
  idleMemory = 0;
  private child: Deno.ChildProcess;

  private constructor(readonly program: Program) {
    const [command, ...args] = program.command(this.port);
    const env = { UP_FILE: upFile, UP_PORT: String(this.port) };
    // Python logs every request on stderr.
    const stderr = program === python ? "null" : "inherit";
    const options = {
      args,
      env,
      stderr,
      stdin: "null",
      stdout: "null",
    } as const;
    this.child = new Deno.Command(command, options).spawn();
    Server.running.add(this);
  }

  /** Returns once the program has answered its first 200. */
  static async start(program: Program): Promise<Server> {
    const server = new Server(program);
    for (let tries = 0; tries < 5_000; tries++) {
      if (await ask(server, "/health").catch(() => 0) === 200) return server;
      await sleep(1);
    }
    throw new Error(`${program.name} does not answer`);
  }

  /** Anonymous memory of its processes, in bytes. */
  memory(): number {
    const { pid } = this.child;
    const children = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`);
    let kilobytes = 0;
    for (const each of `${pid} ${children}`.trim().split(" ")) {
      const status = Deno.readTextFileSync(`/proc/${each}/status`);
      kilobytes += Number(/^RssAnon:\s+(\d+) kB$/m.exec(status)![1]);
    }
    return kilobytes * 1024;
  }

  async stop(): Promise<void> {
    Server.running.delete(this);
    this.child.kill("SIGTERM");
    await this.child.status;
  }

  static async stopAll(): Promise<void> {
    await Promise.all([...Server.running].map((server) => server.stop()));
  }
}

function freePort(): number {
  using listener = Deno.listen({ port: 0 });
  return listener.addr.port;
}

function connect({ port }: Server): Promise<Deno.TcpConn> {
  return Deno.connect({ hostname: "127.0.0.1", port });
}

/** Asks on a connection of its own, and returns the status. */
async function ask(server: Server, path: string): Promise<number> {
  using connection = await connect(server);
  return await askOn(connection, path);
}

async function askOn(connection: Deno.TcpConn, path: string): Promise<number> {
  const request = `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`;
  await connection.write(new TextEncoder().encode(request));
  const answer = new Uint8Array(1024);
  await connection.read(answer);
  return Number(new TextDecoder().decode(answer).split(" ")[1]);
}

// --- The figures -------------------------------------------------------------

/** Requests a second, for a second. wrk takes the least of the processor. */
async function keptAlive({ url }: Server): Promise<number> {
  const options = ["--threads=1", "--connections=16", "--duration=1s"];
  const text = await output("wrk", ...options, `${url}/health`);
  return Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
}

/** As a kubelet asks, with Go's client and a connection for each request. */
async function connectionEach({ url }: Server, clients: number) {
  const options = ["-t=2", "-disable-keepalive", `-c=${clients}`, "-z=1s"];
  const text = await output("hey", ...options, `${url}/health`);
  const rate = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
  const percentile = Number(/99% in ([\d.]+) secs/.exec(text)?.[1]) * 1000;
  return { rate, percentile };
}

async function whileDown(server: Server): Promise<number> {
  await Deno.remove(upFile);
  const rate = await keptAlive(server);
  await Deno.writeTextFile(upFile, "");
  return rate;
}

async function flips(server: Server): Promise<number> {
  const begun = performance.now();
  let count = 0;
  for (; performance.now() - begun < 1_000; count += 2) {
    await ask(server, "/down");
    await ask(server, "/up");
  }
  return count * 1_000 / (performance.now() - begun);
}

async function startTime({ program }: Server): Promise<number> {
  const begun = performance.now();
  const server = await Server.start(program);
  const ms = performance.now() - begun;
  await server.stop();
  return ms;
}

async function stopTime({ program }: Server): Promise<number> {
  const server = await Server.start(program);
  const idle: Deno.TcpConn[] = [];
  for (let count = 0; count < 100; count++) idle.push(await connect(server));
  for (const connection of idle) await askOn(connection, "/health");
  const begun = performance.now();
  await server.stop();
  const ms = performance.now() - begun;
  for (const connection of idle) connection.close();
  return ms;
}

interface Figure {
  name: string;
  /** Those that it makes no sense for. */
  without?: Program[];
  measure(server: Server): number | Promise<number>;
}

/** In the order in which they are measured. */
const figures: Figure[] = [
  { name: "requests/s, up, 16 connections kept alive", measure: keptAlive },
  { name: "the same, down", without: [floor], measure: whileDown },
  {
    name: "requests/s, a connection for each, 16 clients",
    measure: async (server) => (await connectionEach(server, 16)).rate,
  },
  {
    name: "99th percentile of that with 8 clients, ms",
    measure: async (server) => (await connectionEach(server, 8)).percentile,
  },
  {
    name: "flips/s, a connection for each",
    without: [floor, nginx],
    measure: flips,
  },
  {
    name: "anonymous memory, idle, MB",
    measure: ({ idleMemory }) => idleMemory / 1e6,
  },
  {
    name: "anonymous memory after these loads, MB",
    measure: (server) => server.memory() / 1e6,
  },
  { name: "from start to the first 200, ms", measure: startTime },
  {
    name: "from SIGTERM to the end, with 100 idle connections, ms",
    without: [python], // it serves one connection at a time
    measure: stopTime,
  },
];

// --- The rounds and the table ------------------------------------------------

async function measureAll(): Promise<number[][][]> {
  const samples = figures.map(() => programs.map(() => [] as number[]));
  for (let round = 1; round <= rounds; round++) {
    console.error(`round ${round} of ${rounds}`);
    await Deno.writeTextFile(upFile, "");
    const servers: Server[] = [];
    for (const program of programs) servers.push(await Server.start(program));
    await sleep(1_000);
    for (const server of servers) server.idleMemory = server.memory();
    for (const server of servers) await keptAlive(server); // warms V8 up
    for (const [row, { without, measure }] of figures.entries()) {
      for (const [column, server] of servers.entries()) {
        if (without?.includes(server.program)) continue;
        samples[row][column].push(await measure(server));
      }
    }
    await Server.stopAll();
  }
  return samples;
}

function cell(samples: number[]): string {
  if (samples.length === 0) return "–";
  const show = (value: number) =>
    value.toLocaleString("en", { maximumSignificantDigits: 3 });
  const [least, most] = [Math.min(...samples), Math.max(...samples)];
  return `${show(median(samples))} (${show(least)}–${show(most)})`;
}

try {
  const samples = await measureAll();
  const firstLine = async (...command: [string, ...string[]]) =>
    (await output(...command)).split("\n")[0];
  console.log([
    new Date().toISOString().slice(0, 10),
    `Deno ${Deno.version.deno}, ${binary ? "appup compiled" : "from source"}`,
    await firstLine("nginx", "-v"),
    await firstLine("python3", "--version"),
    `${navigator.hardwareConcurrency} cores`,
    `medians of ${rounds} rounds (least–most)`,
  ].join("; "));
  console.log(`\n| figure | ${programs.map(({ name }) => name).join(" | ")} |`);
  console.log(`| --- |${" --: |".repeat(programs.length)}`);
  for (const [row, { name }] of figures.entries()) {
    console.log(`| ${name} | ${samples[row].map(cell).join(" | ")} |`);
  }
} finally {
  await Server.stopAll();
  await Deno.remove(folder, { recursive: true });
}
