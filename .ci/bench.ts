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
const folder = await Deno.makeTempDir({ dir: "/tmp" });
await Deno.chmod(folder, 0o755); // nginx's workers are not root
const upFile = `${folder}/up.txt`;
const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

async function output(command: string, ...args: string[]): Promise<string> {
  const { stdout, stderr } = await new Deno.Command(command, { args }).output();
  const decoder = new TextDecoder();
  return decoder.decode(stdout) + decoder.decode(stderr);
}

// --- The programs ------------------------------------------------------------

interface Program {
  name: string;
  port: number;
  command: string[];
}

const deno = Deno.execPath();
const flags = (await output(deno, "task", "-q", "--cwd", here, "flags")).trim();
const inDeno = [deno, "run", "--quiet", ...flags.split(/\s+/)];
const binary = Deno.env.get("APPUP_BIN");
const nginxConfig = `${folder}/nginx.conf`;
const programs: Program[] = [
  ["appup", binary ? [binary] : [...inDeno, `${here}/../main.ts`]],
  ["floor", [...inDeno, `${here}/bench_floor.ts`]],
  ["nginx", ["nginx", "-c", nginxConfig]],
  ["Python", ["python3", `${here}/bench.py`]],
].map(([name, command]) => ({ name, command, port: freePort() } as Program));
const [, floor, nginx, python] = programs;

Deno.writeTextFileSync(
  nginxConfig,
  `daemon off;
  worker_processes 2;
  error_log stderr;
  pid ${folder}/nginx.pid;
  events { worker_connections 1024; }
  http {
    access_log off;
    default_type text/plain;
    server {
      listen ${nginx.port};
      root ${folder};
      location = /health { try_files /up.txt =503; }
    }
  }`,
);

function freePort(): number {
  using listener = Deno.listen({ port: 0 });
  return listener.addr.port;
}

const children = new Map<Program, Deno.ChildProcess>();

/** Returns once the program has answered its first 200. */
async function start(program: Program): Promise<void> {
  const { name, port, command: [command, ...args] } = program;
  const options = {
    args,
    env: { UP_FILE: upFile, UP_PORT: String(port) },
    stdout: "null",
    stderr: "null", // Python logs every request there
  } as const;
  children.set(program, new Deno.Command(command, options).spawn());
  for (let tries = 0; tries < 5_000; tries++) {
    using connection = await connect(program).catch(() => null);
    if (connection && await ask(connection) === 200) return;
    await sleep(1);
  }
  throw new Error(`${name} does not answer`);
}

async function stop(program: Program): Promise<void> {
  const child = children.get(program)!;
  child.kill("SIGTERM");
  await child.status;
  children.delete(program);
}

const connect = ({ port }: Program) =>
  Deno.connect({ hostname: "127.0.0.1", port });

/** Asks /health, and returns the status. */
async function ask(connection: Deno.TcpConn): Promise<number> {
  const request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
  await connection.write(new TextEncoder().encode(request));
  const answer = new Uint8Array(1024);
  await connection.read(answer);
  return Number(new TextDecoder().decode(answer).split(" ")[1]);
}

// --- The figures -------------------------------------------------------------

/** Requests a second, for a second. wrk takes the least of the processor. */
async function keptAlive({ port }: Program): Promise<number> {
  const options = ["--threads=1", "--connections=16", "--duration=1s"];
  const text = await output(
    "wrk",
    ...options,
    `http://127.0.0.1:${port}/health`,
  );
  return Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
}

async function keptAliveDown(program: Program): Promise<number> {
  await Deno.remove(upFile);
  const rate = await keptAlive(program);
  await Deno.writeTextFile(upFile, "");
  return rate;
}

/** As a kubelet asks, with Go's client and a connection for each request. */
async function connectionEach({ port }: Program, clients: number) {
  const options = ["-t=2", "-disable-keepalive", `-c=${clients}`, "-z=1s"];
  const text = await output(
    "hey",
    ...options,
    `http://127.0.0.1:${port}/health`,
  );
  const rate = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1]);
  const percentile = Number(/99% in ([\d.]+) secs/.exec(text)?.[1]) * 1000;
  return { rate, percentile };
}

/** Anonymous memory of its processes, in MB. */
function memory(program: Program): number {
  const { pid } = children.get(program)!;
  const workers = Deno.readTextFileSync(`/proc/${pid}/task/${pid}/children`);
  let kilobytes = 0;
  for (const each of `${pid} ${workers}`.trim().split(" ")) {
    const status = Deno.readTextFileSync(`/proc/${each}/status`);
    kilobytes += Number(/^RssAnon:\s+(\d+) kB$/m.exec(status)![1]);
  }
  return kilobytes * 1024 / 1e6;
}

async function startTime(program: Program): Promise<number> {
  await stop(program);
  const begun = performance.now();
  await start(program);
  return performance.now() - begun;
}

async function stopTime(program: Program): Promise<number> {
  const idle: Deno.TcpConn[] = [];
  for (let count = 0; count < 100; count++) idle.push(await connect(program));
  for (const connection of idle) await ask(connection);
  const begun = performance.now();
  await stop(program);
  const ms = performance.now() - begun;
  for (const connection of idle) connection.close();
  return ms;
}

interface Figure {
  name: string;
  measure(program: Program): number | Promise<number>;
  /** The one for which it makes no sense. */
  without?: Program;
}

/** In the order in which they are measured. */
const figures: Figure[] = [
  { name: "anonymous memory, idle, MB", measure: memory },
  {
    name: "requests/s, up, 16 connections kept alive",
    measure: async (program) => {
      await keptAlive(program); // warms V8 up
      return await keptAlive(program);
    },
  },
  { name: "the same, down", measure: keptAliveDown, without: floor },
  {
    name: "requests/s, a connection for each, 16 clients",
    measure: async (program) => (await connectionEach(program, 16)).rate,
  },
  {
    name: "99th percentile of that with 8 clients, ms",
    measure: async (program) => (await connectionEach(program, 8)).percentile,
  },
  { name: "anonymous memory after these loads, MB", measure: memory },
  { name: "from start to the first 200, ms", measure: startTime },
  {
    name: "from SIGTERM to the end, with 100 idle connections, ms",
    measure: stopTime,
    without: python, // it serves one connection at a time
  },
];

// --- The rounds and the table ------------------------------------------------

async function measureAll(): Promise<number[][][]> {
  const samples = figures.map(() => programs.map(() => [] as number[]));
  for (let round = 1; round <= rounds; round++) {
    console.error(`round ${round} of ${rounds}`);
    await Deno.writeTextFile(upFile, "");
    for (const program of programs) await start(program);
    await sleep(1_000);
    for (const [row, { measure, without }] of figures.entries()) {
      for (const [column, program] of programs.entries()) {
        if (program === without) continue;
        samples[row][column].push(await measure(program));
      }
    }
    for (const program of children.keys()) await stop(program);
  }
  return samples;
}

/** The median, the least and the most. */
function cell(samples: number[]): string {
  if (samples.length === 0) return "–";
  const sorted = samples.toSorted((a, b) => a - b);
  const show = (value: number) =>
    value.toLocaleString("en", { maximumSignificantDigits: 3 });
  const middle = sorted[Math.floor(sorted.length / 2)];
  return `${show(middle)} (${show(sorted[0])}–${show(sorted.at(-1)!)})`;
}

try {
  const samples = await measureAll();
  const today = new Date().toISOString().slice(0, 10);
  const how = binary ? "compiled" : "from source";
  console.log(`${today}; Deno ${Deno.version.deno}, appup ${how};`);
  console.log(`${navigator.hardwareConcurrency} cores; ${rounds} rounds`);
  console.log(`\n| figure | ${programs.map(({ name }) => name).join(" | ")} |`);
  console.log(`| --- |${" --: |".repeat(programs.length)}`);
  for (const [row, { name }] of figures.entries()) {
    console.log(`| ${name} | ${samples[row].map(cell).join(" | ")} |`);
  }
} finally {
  for (const child of children.values()) child.kill("SIGKILL");
  await Deno.remove(folder, { recursive: true });
}
