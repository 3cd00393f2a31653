/**
 * What appup costs, beside the least that Deno can do (the floor) and what people
 * would run instead: nginx, and Python's http.server. `deno task bench` prints
 * one table in Markdown; it takes about seven minutes (`deno task bench 1`, with
 * a single round, three) and loads nothing but the machine it runs on. The Deno
 * that runs it compiles the floor, so let it be the one that compiled appup; or
 * `deno task bench 9 source` runs both from source.
 *
 * Every round starts the programs anew and measures each row on all of them, one
 * right after the other, in an order that rotates. A ratio is taken within a
 * round, where the machine was as busy for one as for the other, and the median
 * of the rounds' ratios is what a goal is compared with.
 */

import {
  appup,
  ask,
  Cgroup,
  connections,
  descriptors,
  fewDescriptors,
  flood,
  floor,
  isFromSource,
  load,
  nginx,
  oddities,
  output,
  probe,
  type Program,
  programs,
  python,
  Server,
  setState,
  sleep,
  stall,
} from "./bench_programs.ts";

const rounds = Number(Deno.args[0] ?? 9);
const loadBefore = Deno.loadavg()[0].toFixed(2);

/** A number, or the words that stand where there is none. */
type Sample = number | string;

interface Row {
  figure: string;
  measure(server: Server): Sample | Promise<Sample>;
  /** Measured in the first round alone, because it takes long. */
  once?: true;
  goals: Goal[];
}

interface Goal {
  words: string;
  isMet(value: number): boolean;
  /** What appup's figure is divided by: another program's, or its own of another row. */
  by?: Program | Row;
}

const atLeast = (bound: number, by?: Program): Goal => ({
  words: `≥ ${bound}${times(by)}`,
  isMet: (value) => value >= bound,
  by,
});

const atMost = (bound: number, by?: Program | Row): Goal => ({
  words: `≤ ${bound}${times(by)}`,
  isMet: (value) => value <= bound,
  by,
});

function times(by?: Program | Row): string {
  if (by === undefined) return "";
  return ` × ${"name" in by ? by.name : "without them"}`;
}

// -------------------------------------------------------------------- The rows

const KILLED = "killed";

/** Measures within a bound for memory, where the kernel kills what exceeds it. */
async function inCgroup(
  mebibytes: number,
  measure: (cgroup: Cgroup) => Promise<Sample>,
): Promise<Sample> {
  let made: Cgroup;
  try {
    made = new Cgroup(mebibytes * 2 ** 20);
  } catch (error) {
    return `no cgroup can be made here: ${error}`;
  }
  await using cgroup = made;
  try {
    const sample = await measure(cgroup);
    if (cgroup.kills() === 0) return sample;
  } catch (error) {
    if (cgroup.kills() === 0) throw error;
  }
  return KILLED;
}

const isDeno = (program: Program) => program === appup || program === floor;

const floods = [
  { path: "/up", expect: 401, env: { UP_TOKEN: "secret" } },
  { path: "/up", expect: 403, header: "Sec-Fetch-Site: cross-site" },
  { path: "/down?for=x", expect: 400 },
  { path: "/nothing", expect: 404 },
  { path: "/", expect: 200 },
  { path: "/metrics", expect: 200 },
];

/** Anonymous MB of a server of its own, which may use 64 MiB. */
const memoryAfter = (
  load: (server: Server) => Promise<void>,
  program: Program,
  env?: Record<string, string>,
) =>
  inCgroup(64, async ({ wrapper }) => {
    await using server = await Server.start(program, { wrapper, env });
    await load(server);
    return server.memory() / 1e6;
  });

/** Goes down and up in turn, so many times, on one connection. */
async function flipOften(server: Server, count: number) {
  using connection = await server.connect();
  for (let flips = 0; flips < count; flips++) {
    const path = flips % 2 === 0 ? "/down" : "/up";
    const answer = await ask(connection, path);
    if (!answer.includes(" 200 ")) throw new Error(`${path}: ${answer}`);
  }
}

const percentile: Row = {
  figure: "99th percentile of that at 8 clients, ms",
  async measure(server) {
    return (await load(server, { clients: 8, likeKubelet: true })).percentile;
  },
  goals: [atMost(1.25, nginx)],
};

/** In the order in which they are measured. */
const rows: Row[] = [
  {
    figure: "requests/s of `/health`, up, 16 keep-alive connections",
    async measure(server) {
      return (await load(server, { clients: 16 })).perSecond;
    },
    goals: [atLeast(0.95, floor), atLeast(0.75, nginx), atLeast(10, python)],
  },
  {
    figure: "the same while down",
    async measure(server) {
      if (server.program === floor) return "–";
      await setState("down");
      const outcome = await load(server, { clients: 16, expect: 503 });
      await setState("up");
      return outcome.perSecond;
    },
    goals: [atLeast(0.6, nginx)],
  },
  {
    figure: "requests/s with a connection per request, 16 clients",
    async measure(server) {
      return (await load(server, { clients: 16, likeKubelet: true })).perSecond;
    },
    goals: [atLeast(0.95, floor), atLeast(2.2, python)],
  },
  percentile,
  {
    figure: "flips/s, down and up in turn, a connection for each",
    async measure(server) {
      if (server.program === floor || server.program === nginx) return "–";
      const begun = performance.now();
      let flips = 0;
      for (; performance.now() - begun < 1000; flips += 2) {
        for (const path of ["/down", "/up"]) {
          using connection = await server.connect();
          await ask(connection, path);
        }
      }
      return flips * 1000 / (performance.now() - begun);
    },
    goals: [atLeast(0.5, python)],
  },
  {
    figure: "anonymous memory, idle, MB",
    measure: (server) => server.idleMemory / 1e6,
    goals: [atMost(1.05, floor)],
  },
  {
    figure: "anonymous memory after those loads, MB",
    measure: (server) => server.memory() / 1e6,
    goals: [atMost(22)],
  },
  {
    // The pages of the binary are charged to whoever read them first: here, as
    // beside another pod of the same image, that was somebody else.
    figure:
      "peak charged to a container (cgroup) of 32 MiB, 64 keep-alive connections, binary in the page cache, MiB",
    measure({ program }) {
      if (!isDeno(program) || isFromSource) return "–";
      return inCgroup(32, async (cgroup) => {
        const { wrapper } = cgroup;
        await using server = await Server.start(program, { wrapper });
        await load(server, { clients: 64 });
        return cgroup.peak() / 2 ** 20;
      });
    },
    goals: [atMost(32)],
  },
  {
    figure: "from start to the first 200, ms",
    async measure({ program }) {
      const starts: number[] = [];
      while (starts.length < 3) {
        const begun = performance.now();
        await using _ = await Server.start(program);
        starts.push(performance.now() - begun);
      }
      return median(starts);
    },
    goals: [atMost(1.05, floor)],
  },
  {
    figure: "from SIGTERM to the end, 100 idle connections open, ms",
    async measure({ program }) {
      // Its one thread serves one connection at a time, and then closes it.
      if (program === python) return "–";
      const server = await Server.start(program);
      using idle = await connections(server, 100);
      await Promise.all(idle.list.map((connection) => ask(connection)));
      const begun = performance.now();
      await server.stop();
      return performance.now() - begun;
    },
    goals: [atMost(50)],
  },
  {
    figure:
      "99th percentile while 1,000 clients (Python: one) have sent half a request and stall, ms",
    async measure(server) {
      using _ = await stall(server, server.program === python ? 1 : 1000);
      return await percentile.measure(server);
    },
    goals: [atMost(2, percentile)],
  },
  {
    figure:
      `probes answered of ten, one a second, amid 4,000 such clients, in 64 MiB, with ${descriptors} descriptors`,
    once: true,
    measure({ program }) {
      return inCgroup(64, async ({ wrapper }) => {
        const how = { wrapper: [...wrapper, ...fewDescriptors] };
        await using server = await Server.start(program, how);
        using _ = await stall(server, 4000);
        return await probe(server);
      });
    },
    goals: [atLeast(10)],
  },
  {
    figure:
      "most anonymous memory after 50,000 each of 401, 403, 400, 404, `/`, `/metrics` and flips, in 64 MiB, MB",
    once: true,
    async measure({ program }) {
      if (!isDeno(program)) return "–";
      const flips = (server: Server) => flipOften(server, 50_000);
      const samples = [await memoryAfter(flips, program)];
      for (const each of floods) {
        const load = (server: Server) => flood(server, 50_000, each);
        samples.push(await memoryAfter(load, program, each.env));
      }
      return samples.find((sample) => typeof sample === "string") ??
        Math.max(...samples.map(Number));
    },
    goals: [atMost(34)],
  },
  {
    figure: "size of the binary, MB",
    async measure({ program }) {
      if (program !== appup || isFromSource) return "–";
      return (await Deno.stat(appup.command(0)[0])).size / 1e6;
    },
    goals: [],
  },
  {
    figure: "size of the image, MB",
    async measure({ program }) {
      if (program !== appup) return "–";
      for (const tool of ["podman", "docker"]) {
        for (const image of ["localhost/appup:ci", "appup:latest"]) {
          const inspect = ["image", "inspect", "--format={{.Size}}", image];
          const size = Number(await output(tool, ...inspect).catch(() => ""));
          if (size > 0) return size / 1e6;
        }
      }
      return "no image localhost/appup:ci or appup:latest here";
    },
    goals: [],
  },
];

// ------------------------------------------------------------------- The rounds

type Samples = Map<Row, Map<Program, Sample[]>>;

async function measureAll(): Promise<Samples> {
  const samples: Samples = new Map(
    rows.map((row) => [row, new Map(programs.map((each) => [each, []]))]),
  );
  for (let round = 0; round < rounds; round++) {
    console.error(`round ${round + 1} of ${rounds}`);
    const first = round % programs.length;
    const order = [...programs.slice(first), ...programs.slice(0, first)];
    await setState("up");
    const servers: Server[] = [];
    for (const program of order) servers.push(await Server.start(program));
    await sleep(1000);
    for (const server of servers) server.idleMemory = server.memory();
    // Not measured, so that V8 has compiled what it will.
    for (const server of servers) await load(server, { clients: 16 });
    for (const row of rows) {
      if (row.once && round > 0) continue;
      for (const server of servers) {
        samples.get(row)!.get(server.program)!.push(await row.measure(server));
      }
    }
    for (const server of servers) await server.stop();
  }
  return samples;
}

// -------------------------------------------------------------------- The table

function table(samples: Samples): string {
  const lines = rows.map((row) => [
    row.figure,
    ...programs.map((program) => cell(samples.get(row)!.get(program)!)),
    row.goals.map(({ words }) => words).join(", "),
    row.goals.map((goal) => verdict(row, goal, samples)).join(", "),
  ]);
  const head = [
    "figure",
    ...programs.map(({ name }) => name),
    "goal",
    "reached",
  ];
  const rule = ["---", ...programs.map(() => "--:"), "---", "---"];
  return [head, rule, ...lines].map((line) => `| ${line.join(" | ")} |`).join(
    "\n",
  );
}

function cell(samples: Sample[]): string {
  const words = samples.find((sample) => typeof sample === "string");
  if (words !== undefined) return words;
  const numbers = samples.map(Number);
  const [middle, least, most] = [
    median(numbers),
    Math.min(...numbers),
    Math.max(...numbers),
  ].map(show);
  return least === most ? middle : `${middle} (${least}–${most})`;
}

function verdict(row: Row, { isMet, by }: Goal, samples: Samples): string {
  const ours = samples.get(row)!.get(appup)!;
  if (ours.includes(KILLED)) return "**killed**";
  const theirs = by &&
    ("name" in by ? samples.get(row)!.get(by)! : samples.get(by)!.get(appup)!);
  const value = median(
    ours.map((sample, round) =>
      Number(sample) / (theirs ? Number(theirs[round]) : 1)
    ),
  );
  if (Number.isNaN(value)) return "not measured";
  const shown = `${show(value)}${by ? " ×" : ""}`;
  return isMet(value) ? shown : `**${shown}**`;
}

function show(value: number): string {
  if (value === Infinity) return "never";
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function median(numbers: number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

async function heading(): Promise<string> {
  const version = async (command: string, ...options: string[]) =>
    (await output(command, ...options)).split("\n")[0].trim();
  const [command, ...args] = appup.command(0);
  const cpu = (await Deno.readTextFile("/proc/cpuinfo"))
    .match(/^model name\s*: (.*)$/m)?.[1] ?? Deno.build.arch;
  const memory = Deno.systemMemoryInfo().total / 2 ** 30;
  return [
    new Date().toISOString().slice(0, 10),
    await version(command, ...args, "--version"),
    `${
      isFromSource ? "from source" : "compiled"
    }, by Deno ${Deno.version.deno}`,
    await version("nginx", "-v"),
    await version("python3", "--version"),
    (await version("wrk", "-v")).replace(/ \[.*/, ""),
    "hey",
    `Linux ${Deno.osRelease()}`,
    `${cpu}, ${navigator.hardwareConcurrency} cores, ${memory.toFixed()} GiB`,
    `load average ${loadBefore} before`,
    `medians of ${rounds} rounds (least–most)`,
  ].join("; ");
}

// ---------------------------------------------------------------------- The run

try {
  const samples = await measureAll();
  console.log(`${await heading()}\n\n${table(samples)}`);
  if (oddities.length > 0) console.log(`\nOdd: ${oddities.join("; ")}`);
} finally {
  await Server.stopAll();
}
