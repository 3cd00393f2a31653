/**
 * The specification of appup, as tests that talk to the real program over real
 * HTTP and the real file system: from source, or to the binary APPUP_BIN names.
 */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { exists } from "@std/fs";
import { STATUS_CODE } from "@std/http/status";
import http2 from "node:http2";
import manifest from "./deno.json" with { type: "json" };
import { Switch } from "./main.ts";

const {
  OK,
  BadRequest,
  Unauthorized,
  Forbidden,
  NotFound,
  MethodNotAllowed,
  RequestHeaderFieldsTooLarge,
  ServiceUnavailable,
} = STATUS_CODE;

// ---------------------------------------------------------------------------
// Running the program

const FLAGS = [...manifest.tasks.flags.command.matchAll(/'(.*?)'|(\S+)/g)]
  .map(([, quoted, plain]) => quoted ?? plain).slice(1); // without the echo
const BINARY = Deno.env.get("APPUP_BIN"); // empty is as good as not set
const IS_SOURCE = !BINARY;
const PROGRAM = BINARY
  ? [await Deno.realPath(BINARY)]
  : [Deno.execPath(), "run", ...FLAGS, `${import.meta.dirname}/main.ts`];

/** What a kubelet sends. */
const PROBE = "GET /health HTTP/1.1\r\nHost: 10.244.0.7:9999\r\n" +
  "User-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n";

type Env = Record<string, string>;

/** A module that runs ahead of the program, in its process; only from source. */
type Preload = string;

const CHANGES = ["writeFile", "writeTextFile", "rename", "remove"];

/** Makes each change of the file system, or other calls, wait for this code. */
function beforeChanges(code: string, names = CHANGES): Preload {
  const module = `
    let changes = 0;
    for (const name of ${JSON.stringify(names)}) {
      const real = Deno[name];
      Deno[name] = async (...args) => {
        changes++;
        ${code}
        return await real(...args);
      };
    }`;
  return preloadOf(module);
}

const preloadOf = (module: string): Preload =>
  `data:text/javascript,${encodeURIComponent(module)}`;

function spawn(
  args: string[],
  env: Env,
  wrapper: string[] = [],
  preload?: Preload,
) {
  const preloaded = preload ? ["--allow-run", `--preload=${preload}`] : [];
  const program = PROGRAM.toSpliced(2, 0, ...preloaded);
  const [command, ...rest] = [...wrapper, ...program, ...args];
  const inherited = ["DENO_DIR", "HOME", "PATH"].map((name) =>
    [name, Deno.env.get(name)] as const
  ).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return new Deno.Command(command, {
    args: rest,
    clearEnv: true,
    env: { ...Object.fromEntries(inherited), ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Runs the program to its end. */
async function run(
  args: string[],
  env: Env,
  wrapper?: string[],
  preload?: Preload,
) {
  const child = spawn(args, env, wrapper, preload);
  const limit = setTimeout(() => child.kill("SIGKILL"), 10_000);
  const { code, stdout, stderr } = await child.output();
  clearTimeout(limit);
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** A folder as a volume would be, gone at the end of the test. */
async function makeVolume() {
  const folder = await Deno.makeTempDir({ dir: "/tmp", prefix: "appup-test-" });
  const file = `${folder}/up.txt`;
  return {
    folder,
    file,
    stateFile: `${file}.state`,
    state: async () => JSON.parse(await Deno.readTextFile(`${file}.state`)),
    /** Stores a state, as an earlier appup would have done. */
    store: (state: Record<string, unknown>) =>
      Deno.writeTextFile(
        `${file}.state`,
        JSON.stringify({ ...STATE, ...state }),
      ),
    names: () =>
      Array.from(Deno.readDirSync(folder), ({ name }) => name).sort(),
    touch: () => Deno.writeTextFile(file, "by hand", { append: true }),
    rm: () => Deno.remove(file),
    /** As somebody else's flip or settlement would, until it is disposed of. */
    lock: async () => {
      const lock = await Deno.open(folder);
      await lock.lock(true);
      return lock;
    },
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

const BY_HAND = "changed by hand";
const STATE = { since: "2026-01-01T00:00:00.000Z", by: "a test" };
/** A time so many ms from now, as it stands in a state. */
const inMs = (ms: number) => new Date(Date.now() + ms).toISOString();

type Volume = Awaited<ReturnType<typeof makeVolume>>;

/** A running server that has looked at its volume. It ends with the test. */
async function start(
  volume: Volume,
  env: Env = {},
  wrapper?: string[],
  preload?: Preload,
) {
  const settings = { UP_FILE: volume.file, UP_PORT: "0", ...env };
  const child = spawn([], settings, wrapper, preload);
  const errors = new Response(child.stderr).text();
  const log: string[] = [];
  const started = Promise.withResolvers<number>();
  const logged = (async () => {
    const lines = child.stdout.pipeThrough(new TextDecoderStream());
    let rest = "";
    for await (const chunk of lines) {
      const complete = (rest + chunk).split("\n");
      rest = complete.pop() ?? "";
      log.push(...complete);
      if (log.length < 2) continue; // the second line is what it found
      const [, port] = / on \S+:(\d+) for /.exec(log[0]) ?? [];
      started.resolve(Number(port));
    }
    started.reject(new Error(`it did not start: ${log} ${await errors}`));
  })();
  const limit = setTimeout(() => child.kill("SIGKILL"), 10_000);
  const port = await started.promise.finally(() => clearTimeout(limit));
  const ended = child.status.then(async (status) => {
    await logged;
    return { ...status, errors: await errors };
  });
  return {
    pid: child.pid,
    port,
    log,
    ended,
    kill: (signal: Deno.Signal) => child.kill(signal),
    ask: (path: string, init?: RequestInit) => ask(port, path, init),
    probe: () => raw(port, PROBE),
    /** Waits for a line of the log that has this text. */
    logs: (text: string, ms?: number) =>
      until(
        `the log says ${text}, but: ${log.join("\n")}`,
        () => log.some((line) => line.includes(text)),
        ms,
      ),
    async [Symbol.asyncDispose]() {
      try {
        child.kill("SIGKILL");
      } catch { /* it ended in the test */ }
      await ended;
    },
  };
}

async function ask(port: number, path: string, init?: RequestInit) {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, init);
  const { status, headers } = response;
  return { status, headers, body: await response.text() };
}

/** Status and body alone, to compare with a line of a table. */
async function brief(answer: ReturnType<typeof ask>) {
  const { status, body } = await answer;
  return [status, body] as const;
}

const send = (connection: Deno.Conn, text: string) =>
  connection.write(new TextEncoder().encode(text));

/** What comes back for these bytes, until the server closes the connection. */
async function raw(port: number, bytes: string, hostname = "127.0.0.1") {
  const connection = await Deno.connect({ hostname, port });
  const timeout = setTimeout(() => connection.close(), 5_000);
  try {
    await send(connection, bytes);
    return await new Response(connection.readable).text();
  } finally {
    clearTimeout(timeout);
  }
}

/** As many connections as there can be, up to `length`. */
async function connect(port: number, length: number): Promise<Deno.Conn[]> {
  const attempts = await Promise.allSettled(
    Array.from({ length }, () => Deno.connect({ hostname: "127.0.0.1", port })),
  );
  return attempts.flatMap((attempt) =>
    attempt.status === "fulfilled" ? [attempt.value] : []
  );
}

type Steps = Record<string, (t: Deno.TestContext) => Promise<void>>;

async function sideBySide(t: Deno.TestContext, steps: Steps) {
  const together = { sanitizeOps: false, sanitizeResources: false };
  await Promise.all(
    Object.entries(steps).map(([name, fn]) =>
      t.step({ name, fn, ...together, sanitizeExit: false })
    ),
  );
}

/** A test that needs a preload or the start task, which a binary has not. */
function fromSource(name: string, fn: Steps[string]) {
  Deno.test({ name, fn, ignore: !IS_SOURCE });
}

const patient: Steps = {};
/** A test that may share the machine: all of these run side by side. */
function patiently(name: string, fn: Steps[string], canRun = true) {
  if (canRun) patient[name] = fn;
  else Deno.test({ name, fn, ignore: true });
}

const after = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until it holds, and fails when it doesn't within `ms`. */
async function until(
  what: string,
  holds: () => boolean | Promise<boolean>,
  ms = 5_000,
) {
  const end = Date.now() + ms;
  while (!await holds()) {
    assert(Date.now() < end, `not within ${ms} ms: ${what}`);
    await after(10);
  }
}

// As root, no permission is ever denied; without its capabilities, it is.
const isRoot = Deno.uid() === 0;
const WITHOUT_PRIVILEGES = isRoot
  ? ["setpriv", "--bounding-set=-all", "--"]
  : [];
/** A tmpfs for this process alone, on the volume's folder. */
const onTmpfs = (volume: Volume, options: string) => [
  "unshare",
  "--mount",
  "sh",
  "-c",
  `mount -t tmpfs -o ${options} tmpfs ${volume.folder} && exec "$@"`,
  "sh",
];
/** The same, with so many pages of room; `before` runs ahead of the program. */
const onFullDisk = (volume: Volume, pages = 0, before = "true") => [
  ...onTmpfs(volume, `size=${4 * (1 + pages)}k`),
  "sh",
  "-c",
  `head -c 4096 /dev/zero >${volume.folder}/fill && ${before} && exec "$@"`,
  "sh",
];
const canRun = async (command: string, ...args: string[]) => {
  try {
    return (await new Deno.Command(command, { args }).output()).success;
  } catch {
    return false;
  }
};
const canMount = await canRun("unshare", "--mount", "true");
const hasStrace = await canRun("strace", "true");
const hasCurl = await canRun("curl", "--version");
const hasPython = await canRun("python3", "--version");
const hasIPv6 = await exists("/proc/net/if_inet6");

// ---------------------------------------------------------------------------
// The contract

Deno.test("/up and /down flip the file, and /health says which it is", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [method, path, status, body, isThere] of [
      ["GET", "/health", ServiceUnavailable, "app is down", false],
      ["GET", "/down", ServiceUnavailable, "app is already down", false],
      ["GET", "/up", OK, "app is up", true],
      ["GET", "/health", OK, "app is up", true],
      ["HEAD", "/health", OK, "", true],
      ["GET", "/up", OK, "app is up", true],
      ["GET", "/down", OK, "app is down", false],
      ["GET", "/health", ServiceUnavailable, "app is down", false],
      ["HEAD", "/health", ServiceUnavailable, "", false],
      ["POST", "/up", OK, "app is up", true],
      ["POST", "/down", OK, "app is down", false],
      ["POST", "/down", ServiceUnavailable, "app is already down", false],
      ["GET", "/up?", OK, "app is up", true],
      ["GET", "/health?path=/down", OK, "app is up", true],
      ["GET", "/health?verbose", OK, "app is up", true],
      ["GET", "/down?", OK, "app is down", false],
      ["HEAD", "/", OK, "", false],
      ["HEAD", "/livez", OK, "", false],
      ["HEAD", "/metrics", OK, "", false],
    ] as const
  ) {
    await t.step(`${method} ${path}: ${status} ${body}`, async () => {
      const answer = await app.ask(path, { method });
      assertEquals([answer.status, answer.body], [status, body]);
      assertEquals(await exists(volume.file), isThere);
    });
  }
});

Deno.test("another method is a 405 that says which to use", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [method, path, allow] of [
      ["HEAD", "/up", "GET, POST"],
      ["HEAD", "/down", "GET, POST"],
      ["PUT", "/up", "GET, POST"],
      ["DELETE", "/down", "GET, POST"],
      ["POST", "/health", "GET, HEAD"],
      ["OPTIONS", "/health", "GET, HEAD"],
      ["POST", "/livez", "GET, HEAD"],
      ["POST", "/metrics", "GET, HEAD"],
      ["POST", "/", "GET, HEAD"],
    ] as const
  ) {
    await t.step(`${method} ${path}`, async () => {
      const { status, headers, body } = await app.ask(path, { method });
      assertEquals(status, MethodNotAllowed);
      assertEquals(headers.get("allow"), allow);
      const use = allow.replace(", ", " or ");
      const message = `${method} is not allowed; use ${use}`;
      assertEquals(body, method === "HEAD" ? "" : message);
      assertEquals(await exists(volume.file), false);
    });
  }
});

Deno.test("another path is a 404 that lists the endpoints", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [method, path] of [
      ["GET", "/health/"],
      ["GET", "//health"],
      ["POST", "/nope"],
    ]
  ) {
    await t.step(`${method} ${path}`, async () => {
      const { status, body } = await app.ask(path, { method });
      assertEquals(status, NotFound);
      assertMatch(body, /^not found; the endpoints are:\n/);
      for (const endpoint of ["/up", "/down", "/health", "/metrics"]) {
        assertMatch(body, new RegExp(`^${endpoint} `, "m"));
      }
    });
  }
});

Deno.test("every answer is plain text that nobody may cache", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const paths = ["/up", "/down", "/down", "/down?for=x", "/health", "/livez"];
  for (const path of [...paths, "/", "/nope", "/metrics"]) {
    const { headers } = await app.ask(path);
    assertEquals(headers.get("cache-control"), "no-store", path);
    assertEquals(
      headers.get("content-type"),
      path === "/metrics"
        ? "text/plain; version=0.0.4; charset=utf-8"
        : "text/plain; charset=utf-8",
      path,
    );
  }
});

Deno.test("a probe works as a kubelet sends it", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  assertMatch(await app.probe(), /^HTTP\/1\.1 503 [^]*\r\n\r\napp is down$/);
  await volume.touch();
  assertMatch(await app.probe(), /^HTTP\/1\.1 200 [^]*\r\n\r\napp is up$/);
});

Deno.test("/up leaves a file that exists as it is", async () => {
  await using volume = await makeVolume();
  await volume.touch();
  await Deno.utime(volume.file, 1_000_000, 1_000_000);
  await using app = await start(volume);
  assertEquals((await app.ask("/up")).status, OK);
  assertEquals(await Deno.readTextFile(volume.file), "by hand");
  assertEquals((await Deno.stat(volume.file)).mtime, new Date(1e9));
});

Deno.test("a touch and an rm count at once, even under load", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  let isLoaded = true;
  const load = Array.from({ length: 8 }, async () => {
    while (isLoaded) await app.ask("/health");
  });
  for (let round = 0; round < 100; round++) {
    const isUp = round % 2 === 0;
    await (isUp ? volume.touch() : volume.rm());
    const answers = [1, 2, 3].map(() => app.ask("/health"));
    for (const { status } of await Promise.all(answers)) {
      assertEquals(status, isUp ? OK : ServiceUnavailable, `round ${round}`);
    }
  }
  isLoaded = false;
  await Promise.all(load);
});

Deno.test("of many /down at once, exactly one is a 200", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (let round = 0; round < 10; round++) {
    await volume.touch();
    const answers = await Promise.all(
      Array.from({ length: 30 }, () => brief(app.ask("/down"))),
    );
    const expected = [
      [OK, "app is down"],
      ...Array(29).fill([ServiceUnavailable, "app is already down"]),
    ];
    assertEquals(answers.sort(([a], [b]) => a - b), expected);
  }
});

Deno.test("many /up at once are all 200, and none truncates the file", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (let round = 0; round < 10; round++) {
    if (round % 2 === 0) await volume.touch();
    const content = round % 2 === 0 ? "by hand" : "";
    const answers = Array.from({ length: 30 }, () => brief(app.ask("/up")));
    for (const answer of await Promise.all(answers)) {
      assertEquals(answer, [OK, "app is up"]);
      assertEquals(await Deno.readTextFile(volume.file), content);
    }
    await volume.rm();
  }
});

patiently(
  "a failure is a 503 that says what failed and where, and the log says it once",
  async (t) => {
    const cases: {
      name: string;
      says: RegExp;
      wrapper?: (volume: Volume) => string[];
      spoil?: (volume: Volume) => Promise<void>;
      mend?: (volume: Volume) => Promise<void>;
      asks: string[];
      ignore?: boolean;
    }[] = [
      {
        name: "a directory where the file should be",
        says: /^not a regular file: \/tmp\/.*\/up\.txt$/,
        spoil: ({ file }) => Deno.mkdir(file),
        mend: ({ file }) => Deno.remove(file),
        asks: ["/up", "/down", "/down?for=1h", "/health", "/"],
      },
      {
        name: "the volume gone",
        says: /^No such file or directory .*appup-test-/,
        spoil: ({ folder }) => Deno.rename(folder, `${folder}-away`),
        mend: ({ folder }) => Deno.rename(`${folder}-away`, folder),
        asks: ["/up", "/down", "/down?for=1h", "/health", "/"],
      },
      {
        name: "a broken symbolic link",
        says: /^broken symbolic link: \/tmp\/.*\/up\.txt$/,
        spoil: ({ file }) => Deno.symlink("/tmp/appup-test-nowhere", file),
        mend: ({ file }) => Deno.remove(file),
        asks: ["/up"],
      },
      {
        name: "permission denied to write",
        says: /^Permission denied .*\/up\.txt/,
        wrapper: () => WITHOUT_PRIVILEGES,
        spoil: ({ folder }) => Deno.chmod(folder, 0o555),
        mend: ({ folder }) => Deno.chmod(folder, 0o755),
        asks: ["/up", "/down?for=1h"],
      },
      {
        name: "permission denied to look",
        says: /^Permission denied .*\/up\.txt/,
        wrapper: () => WITHOUT_PRIVILEGES,
        spoil: ({ folder }) => Deno.chmod(folder, 0o600),
        mend: ({ folder }) => Deno.chmod(folder, 0o755),
        asks: ["/up", "/down", "/health"],
      },
      {
        name: "a read-only file system",
        says: /^Read-only file system .*\/up\.txt/,
        wrapper: (volume) => onTmpfs(volume, "ro"),
        asks: ["/up", "/down?for=1h"],
        ignore: !canMount,
      },
      {
        name: "a full file system",
        says: /^No space left on device .*\/up\.txt/,
        wrapper: (volume) => onTmpfs(volume, "nr_inodes=1"),
        asks: ["/up", "/down?for=1h"],
        ignore: !canMount,
      },
    ];
    for (const { name, says, wrapper, spoil, mend, asks, ignore } of cases) {
      await t.step({
        name,
        ignore,
        fn: async () => {
          await using volume = await makeVolume();
          await using app = await start(volume, {}, wrapper?.(volume));
          await spoil?.(volume);
          for (const path of [...asks, ...asks]) {
            const { status, body } = await app.ask(path);
            assertEquals(status, ServiceUnavailable, `${path}: ${body}`);
            assertMatch(body, says);
            assert(!body.includes("\n"), body);
            await app.logs(body);
            const isSame = (line: string) => line.endsWith(`Z ${body}`);
            assertEquals(app.log.filter(isSame).length, 1, app.log.join("\n"));
          }
          await mend?.(volume);
          if (!mend) return;
          assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
          assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
        },
      });
    }
  },
);

// ---------------------------------------------------------------------------
// Configuration

patiently(
  "a wrong value is exit code 2 and a line that says what to set",
  async (t) => {
    await using volume = await makeVolume();
    for (
      const [name, value, shown = JSON.stringify(value)] of [
        ["UP_PORT", ""],
        ["UP_PORT", "-1"],
        ["UP_PORT", "65536"],
        ["UP_PORT", "80.5"],
        ["UP_PORT", "0x50"],
        ["UP_PORT", "tcp://10.0.0.1:80"],
        ["UP_FILE", ""],
        ["UP_FILE", "up.txt"],
        ["UP_FILE", "/up.txt"],
        ["UP_FILE", "/etc/up.txt"],
        ["UP_FILE", "/tmp/../etc/up.txt"],
        ["UP_FILE", "/tmpfile/up.txt"],
        ["UP_FILE", "/tmp"],
        ["UP_FILE", `${volume.folder}/`],
        ["UP_FILE", `${volume.folder}/.`],
        ["UP_FILE", `${volume.folder}/..`],
        ["UP_FILE", `${volume.folder}/nowhere/up.txt`],
        ["UP_INITIAL", ""],
        ["UP_INITIAL", "UP"],
        ["UP_INITIAL", "true"],
        ["UP_FROM", ""],
        ["UP_FROM", "Pod"],
        ["UP_FROM", "127.0.0.1"],
        ["UP_TOKEN", "", "(not shown)"],
        ["UP_TOKEN", "from echo\n", "(not shown)"],
        ["UP_TOKEN", "pässword", "(not shown)"],
      ]
    ) {
      await t.step(`${name}=${JSON.stringify(value)}`, async () => {
        const env = { UP_FILE: volume.file, UP_PORT: "0", [name]: value };
        const { code, stdout, stderr } = await run([], env);
        assertEquals([code, stdout], [2, ""]);
        assertEquals(stderr.split("\n").length, 2, stderr);
        assert(stderr.startsWith(`${name}=${shown}: must be `), stderr);
      });
    }
    await t.step("all of them at once", async () => {
      const { code, stderr } = await run([], {
        UP_FILE: "up.txt",
        UP_PORT: "x",
        UP_INITIAL: "x",
        UP_FROM: "x",
        UP_TOKEN: "",
      });
      assertEquals(code, 2);
      assertEquals(
        stderr.trimEnd().split("\n").map((line) => line.split("=")[0]),
        ["UP_FILE", "UP_PORT", "UP_INITIAL", "UP_FROM", "UP_TOKEN"],
      );
    });
    for (const name of ["UP_FILE", "UP_TOKEN"]) {
      await t.step(`a ${name} that is no text`, async () => {
        const set = `export ${name}=$(printf 's3cret\\377') && exec "$@"`;
        const wrapper = ["sh", "-c", set, "sh"];
        const env = { UP_FILE: volume.file };
        const { code, stderr } = await run([], env, wrapper);
        assertEquals(code, 2);
        assert(stderr.startsWith(`${name}=`), stderr);
        assert(!stderr.includes("s3cret"), stderr);
      });
    }
  },
);

Deno.test("a port in use is one line and exit code 1", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const env = { UP_FILE: volume.file, UP_PORT: String(app.port) };
  const { code, stdout, stderr } = await run([], env);
  assertEquals([code, stdout], [1, ""]);
  assertMatch(
    stderr,
    new RegExp(
      `^cannot listen on port ${app.port}: Address already in use.*\n$`,
    ),
  );
});

fromSource(
  "the start task serves a file in /tmp, unless told otherwise",
  async () => {
    const defaults = await Deno.readTextFile(`${import.meta.dirname}/.env`);
    assertEquals(defaults.match(/^[^#\n].*/gm), ["UP_FILE=/tmp/up.txt"]);
    await using volume = await makeVolume();
    const { DENO_DIR = "", HOME = "", PATH = "" } = Deno.env.toObject();
    const task = new Deno.Command(Deno.execPath(), {
      args: ["task", "start"],
      cwd: import.meta.dirname,
      clearEnv: true,
      env: { DENO_DIR, HOME, PATH, UP_PORT: "0", UP_FILE: volume.file },
      stdout: "piped",
      stderr: "null",
    }).spawn();
    const lines = task.stdout.pipeThrough(new TextDecoderStream()).getReader();
    const { value } = await lines.read();
    assertStringIncludes(value ?? "", ` for ${volume.file}\n`);
    task.kill("SIGTERM");
    await lines.cancel();
    await task.status;
  },
);

Deno.test("it may use /pod, /tmp, the net and its own variables, and nothing else", () => {
  const { tasks: { flags: { command } } } = manifest;
  assertEquals(FLAGS.filter((flag) => flag.startsWith("--allow-")).sort(), [
    "--allow-env=UP_FILE,UP_PORT,UP_INITIAL,UP_FROM,UP_TOKEN",
    "--allow-net=[::],0.0.0.0",
    "--allow-read=/pod,/tmp",
    "--allow-write=/pod,/tmp",
  ]);
  for (const task of [manifest.tasks.start, manifest.tasks.compile]) {
    assertStringIncludes(task.command, "$(deno task -q flags)");
    assert(!task.command.includes("--allow-"), command);
  }
});

Deno.test("it imports nothing", async () => {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", `${import.meta.dirname}/main.ts`],
  }).output();
  const { modules } = JSON.parse(new TextDecoder().decode(stdout));
  assertEquals(
    modules.map(({ specifier }: { specifier: string }) => specifier),
    [new URL("main.ts", import.meta.url).href],
  );
});

// ---------------------------------------------------------------------------
// The process

Deno.test({
  name: "one socket answers IPv4 and IPv6",
  ignore: !hasIPv6,
  fn: async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    const request =
      "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (const hostname of ["127.0.0.1", "::1"]) {
      assertMatch(await raw(app.port, request, hostname), /^HTTP\/1.1 200 /);
    }
  },
});

Deno.test({
  name: "without IPv6, it serves IPv4",
  ignore: !hasStrace,
  fn: async () => {
    await using volume = await makeVolume();
    const noIPv6 = "inject=socket:error=EAFNOSUPPORT:when=1";
    const strace = ["strace", "-Dfqq", "-o/dev/null", "-etrace=socket"];
    const wrapper = [...strace, "-e", noIPv6, "--"];
    await using app = await start(volume, {}, wrapper);
    assertEquals(await brief(app.ask("/livez")), [OK, "ok"]);
    assertMatch(app.log[0], / on 0\.0\.0\.0:\d+ for /);
  },
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  Deno.test(`${signal} ends it at once with 0, and leaves the file`, async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    await app.ask("/up");
    const open = await connect(app.port, 60);
    const idle = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    const half = "GET /health HTTP/1.1\r\nHo";
    for (const [i, connection] of open.entries()) {
      await send(connection, [idle, half, ""][i % 3]);
    }
    await after(100);
    const killed = Date.now();
    app.kill(signal);
    const { code, errors } = await app.ended;
    assert(Date.now() - killed < 1_000, `${Date.now() - killed} ms`);
    assertEquals([code, errors], [0, ""]);
    assertEquals(await exists(volume.file), true);
    for (const connection of open) connection.close();
  });
}

Deno.test("SIGTERM lets requests that are under way finish", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const connections = await connect(app.port, 40);
  const answers = await (async () => {
    using _nobodyFlips = await volume.lock();
    const answers = connections.map(async (connection, i) => {
      const path = i % 2 ? "/up" : "/down?for=1h";
      await send(connection, `GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`);
      const answer = new Uint8Array(1024);
      const length = await connection.read(answer);
      return new TextDecoder().decode(answer.subarray(0, length ?? 0));
    });
    // The server reads what came first before it answers what came later.
    for (let i = 0; i < 3; i++) await app.ask("/livez");
    app.kill("SIGTERM");
    await app.logs("SIGTERM: stopping");
    return answers;
  })();
  for (const answer of await Promise.all(answers)) {
    assertMatch(answer, /^HTTP\/1.1 200 OK\r\n/);
  }
  assertEquals((await app.ended).code, 0);
  for (const connection of connections) connection.close();
});

fromSource(
  "a listener that dies while the server stops is not restarted",
  async () => {
    await using volume = await makeVolume();
    // As when descriptors run out at that moment.
    const preload = preloadOf(`
      const { serve } = Deno;
      Deno.serve = (...args) => {
        const server = serve(...args);
        const died = Promise.withResolvers();
        const shutdown = async () => {
          await server.shutdown();
          died.reject(new Error("no descriptor"));
          await new Promise((done) => setTimeout(done, 50));
        };
        return { addr: server.addr, finished: died.promise, shutdown };
      };`);
    await using app = await start(volume, {}, [], preload);
    app.kill("SIGTERM");
    const { code, errors } = await app.ended;
    assertEquals([code, errors], [0, ""]);
    assertStringIncludes(app.log.at(-1) ?? "", "SIGTERM: stopping");
  },
);

patiently(
  "probes are answered soon after stalled clients took all descriptors",
  async () => {
    await using volume = await makeVolume();
    const wrapper = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"];
    await using app = await start(volume, {}, wrapper);
    await volume.touch();
    const begins = "too many connections: no descriptor is left";
    const stalled: Deno.Conn[] = [];
    for (let wave = 0; wave < 3; wave++) {
      stalled.push(...await connect(app.port, 100));
      for (const connection of stalled) {
        send(connection, "GET /he").catch(() => {});
      }
      await app.logs(begins);
      await until("a probe is answered while they hold on", async () => {
        const answer = await app.probe().catch(String);
        return answer.includes(" 200 ");
      });
    }
    for (const connection of stalled) connection.close();
    await app.logs(`over, not met for 5 s: ${begins}`, 8_000);
    assertEquals(app.log.filter((line) => line.includes(begins)).length, 2);
  },
  IS_SOURCE, // a binary may have an older Deno, which hides that it is deaf
);

Deno.test("a thousand stalled clients do not keep a probe waiting", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const stalled = await connect(app.port, 1000);
  assertEquals(stalled.length, 1000);
  for (const connection of stalled) await send(connection, "GET /health HT");
  const { status } = await app.ask("/health", {
    signal: AbortSignal.timeout(1_000), // a probe's timeoutSeconds
  });
  assertEquals(status, ServiceUnavailable);
  for (const connection of stalled) connection.close();
});

patiently(
  "too many requests at once are refused, but never a probe",
  async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    const connections = await connect(app.port, 450);
    {
      using _nobodyFlips = await volume.lock();
      for (const connection of connections) {
        await send(connection, "GET /up HTTP/1.1\r\nHost: a\r\n\r\n");
      }
      await until("too many wait", async () => {
        const { status, body } = await app.ask("/");
        return status === ServiceUnavailable && body.startsWith("too many");
      });
      const health = await brief(app.ask("/health"));
      assertEquals(health, [ServiceUnavailable, "app is down"]);
      assertEquals(await brief(app.ask("/livez")), [OK, "ok"]);
    }
    await until(
      "it flips again",
      async () => (await app.ask("/up")).status === OK,
    );
    for (const connection of connections) connection.close();
    const { body } = await app.ask("/metrics");
    assertStringIncludes(body, 'appup_requests_total{path="/",code="503"} ');
    const isSame = (line: string) =>
      line.endsWith("Z too many requests at once");
    assertEquals(app.log.filter(isSame).length, 1, app.log.join("\n"));
  },
);

Deno.test("headers that could fill the heap are refused", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const long = "a".repeat(16_384);
  for (
    const [path, headers, status] of [
      ["/up", { "x-long": long }, RequestHeaderFieldsTooLarge],
      [`/up?x=${long}`, {}, RequestHeaderFieldsTooLarge],
      [`/health?${long}`, {}, RequestHeaderFieldsTooLarge],
      ["/", { cookie: long }, RequestHeaderFieldsTooLarge],
      [`/${long}`, {}, RequestHeaderFieldsTooLarge],
      ["/", { cookie: long.slice(1_000) }, OK],
      ["/health", { "user-agent": long }, ServiceUnavailable],
    ] as [string, Record<string, string>, number][]
  ) {
    const name = `${path} ${JSON.stringify(headers)}`;
    await t.step(`${name.slice(0, 30)}: ${status}`, async () => {
      assertEquals((await app.ask(path, { headers })).status, status);
      assertEquals(await exists(volume.file), false);
    });
  }
  assertStringIncludes((await app.ask("/")).body, "by aaaa");
});

Deno.test("ten thousand requests at once over HTTP/2 do not end it", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  // RFC 9113: a preface, settings, and a GET of /health or / on each odd stream.
  const frame = (type: number, flags: number, id: number, bytes: number[]) => [
    ...[0, 0, bytes.length, type, flags, 0, 0, id >> 8, id & 255],
    ...bytes,
  ];
  const get = (id: number, path: string) => {
    const text = [...new TextEncoder().encode(path)];
    const fields = [0x82, 0x86, 0x44, text.length, ...text, 0x41, 1, 0x61];
    return frame(1, 5, id, fields);
  };
  for (const path of ["/health", "/"]) {
    const streams = Array.from({ length: 200 }, (_, i) => get(2 * i + 1, path));
    const bytes = [frame(4, 0, 0, []), ...streams].flat();
    const connections = await connect(app.port, 50);
    await Promise.all(connections.map(async (connection) => {
      await send(connection, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
      await connection.write(new Uint8Array(bytes));
    }));
    await until(
      "a probe is answered",
      () =>
        app.probe().then((text) => text.includes("app is down"), () => false),
    );
    for (const connection of connections) connection.close();
  }
});

patiently(
  "the log has a line for each event, and none for a probe",
  async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    const events = [
      `appup ${manifest.version} on [::]:${app.port} for ${volume.file}`,
      "app is down: UP_INITIAL",
    ];
    const happens = async (event: string) => {
      events.push(event);
      await until(event, () => app.log.length >= events.length);
    };
    await app.ask("/up");
    await happens("app is up: GET /up from 127.0.0.1");
    await app.ask("/up");
    await app.ask("/down", { method: "POST" });
    await happens("app is down: POST /down from 127.0.0.1");
    await app.ask("/down");
    for (let i = 0; i < 30; i++) await app.ask("/health");
    await volume.touch();
    await happens(`app is up: ${BY_HAND}`);
    await volume.rm();
    await happens(`app is down: ${BY_HAND}`);
    for (let i = 0; i < 30; i++) await app.ask("/health");
    app.kill("SIGTERM");
    await app.ended;
    events.push("SIGTERM: stopping");
    assertEquals(app.log.length, events.length, app.log.join("\n"));
    for (const [i, line] of app.log.entries()) {
      const [, time, event] = /^(\S+) (.*)$/.exec(line) ?? [];
      assertEquals([new Date(time).toISOString(), event], [time, events[i]]);
    }
  },
);

/** Runs a program with a stdout and stderr that are full and don't block. */
const FULL_PIPE = `
import fcntl, os, sys
reader, writer = os.pipe()
os.set_inheritable(reader, True)
fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
try:
    while True: os.write(writer, b"x")
except BlockingIOError:
    os.dup2(writer, 1), os.dup2(writer, 2)
    os.execvp(sys.argv[1], sys.argv[1:])
`;

patiently("a log that cannot be written changes no answer", async (t) => {
  const wrappers: Record<string, string[]> = {
    "a full disk": ["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"],
    "nothing open": ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"],
    "a reader that is gone": [],
  };
  if (hasPython) {
    wrappers["a full pipe that does not block"] = ["python3", "-c", FULL_PIPE];
  }
  for (const [name, wrapper] of Object.entries(wrappers)) {
    await t.step(name, async () => {
      await using volume = await makeVolume();
      const listener = Deno.listen({ port: 0 });
      const { port } = listener.addr;
      listener.close();
      const env = { UP_FILE: volume.file, UP_PORT: String(port) };
      const child = spawn([], env, wrapper);
      await Promise.all([child.stdout.cancel(), child.stderr.cancel()]);
      const isThere = () => ask(port, "/livez").then(() => true, () => false);
      await until("it answers", isThere);
      assertEquals(await brief(ask(port, "/up")), [OK, "app is up"]);
      assertEquals(await exists(volume.file), true);
      assertEquals(await brief(ask(port, "/down")), [OK, "app is down"]);
      assertEquals((await volume.state()).by, "GET /down from 127.0.0.1");
      await Deno.mkdir(volume.file);
      assertEquals((await ask(port, "/up")).status, ServiceUnavailable);
      await Deno.remove(volume.file);
      const shell = spawn(["health"], env, wrapper);
      await Promise.all([shell.stdout.cancel(), shell.stderr.cancel()]);
      assertEquals((await shell.status).code, 1);
      child.kill("SIGTERM");
      assertEquals((await child.status).code, 0);
    });
  }
});

// ---------------------------------------------------------------------------
// Drains and reasons

Deno.test("a drain takes the app down from any state, for a time as Go writes it", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [given, seconds, said = given] of [
      ["1", 1, "1s"],
      ["90", 90, "90s"],
      ["1s", 1],
      ["10m", 600],
      ["010m", 600],
      ["24h", 86_400],
      ["1440m", 86_400],
      ["1h30m", 5_400],
      ["10m0s", 600],
      ["1h0m30s", 3_630],
      ["0h1s", 1],
      ["23h59m60s", 86_400],
    ] as const
  ) {
    await t.step(`for=${given}`, async () => {
      for (const from of ["/up", "/down"]) {
        await app.ask(from);
        const asked = Date.now();
        const answer = await brief(app.ask(`/down?for=${given}`));
        assertEquals(answer, [OK, `app is down for ${said}`]);
        assertEquals(await exists(volume.file), false);
        const ends = Date.parse((await volume.state()).until);
        const late = ends - asked - seconds * 1000;
        assert(late >= 0 && late < 1_000, `${late} ms too long`);
      }
    });
  }
});

Deno.test("a toggle that cannot do all it was asked is a 400 and flips nothing", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [query, says] of [
      ["for=", "1s to 24h"],
      ["for=0", "1s to 24h"],
      ["for=0s", "1s to 24h"],
      ["for=-1", "1s to 24h"],
      ["for=1.5h", "1s to 24h"],
      ["for=10 m", "1s to 24h"],
      ["for=10M", "1s to 24h"],
      ["for=10d", "1s to 24h"],
      ["for=m", "1s to 24h"],
      ["for=30m1h", "1s to 24h"],
      ["for=1m1m", "1s to 24h"],
      ["for=1h30", "1s to 24h"],
      ["for=24h1s", "1s to 24h"],
      ["for=25h", "1s to 24h"],
      ["for=86401", "1s to 24h"],
      ["for=99999999999999999999999", "1s to 24h"],
      ["for=constructor", "1s to 24h"],
      ["For=10m", 'unknown parameter "For": a toggle takes for and reason'],
      ["for=10m&now", 'unknown parameter "now": a toggle takes for and reason'],
      ["=", 'unknown parameter "": a toggle takes for and reason'],
      ["a=b/health", 'unknown parameter "a": a toggle takes for and reason'],
      ["for=1h&for=x", "for is given twice"],
      ["for=1h&for=1h", "for is given twice"],
      ["reason=a&reason=b", "reason is given twice"],
      [`reason=${"x".repeat(201)}`, "200 characters"],
      ["reason=two%0Alines", "control characters"],
      ["reason=%00", "control characters"],
      ["reason=%7F", "control characters"],
      ["reason=%C2%85", "control characters"],
      ["reason=%E2%80%A8", "line breaks"],
      ["reason=%D8%9C", "bidirectional controls"],
      ["reason=%E2%80%8E", "bidirectional controls"],
      ["reason=%E2%80%AA", "bidirectional controls"],
      ["reason=%E2%80%AE", "bidirectional controls"],
      ["reason=%E2%81%A6", "bidirectional controls"],
      ["reason=%E2%81%A9", "bidirectional controls"],
    ]
  ) {
    await t.step(query.slice(0, 30), async () => {
      for (const isUp of [true, false]) {
        if (isUp) await volume.touch();
        const { status, body } = await app.ask(`/down?${query}`);
        assertEquals(status, BadRequest);
        assertStringIncludes(body, says);
        assertEquals(await exists(volume.file), isUp);
        if (isUp) await volume.rm();
      }
    });
  }
  for (
    const [query, says] of [
      ["for=10m", "only down takes a duration"],
      ["a=b/health", 'unknown parameter "a": a toggle takes for and reason'],
    ]
  ) {
    await t.step(`/up?${query}`, async () => {
      const answer = await brief(app.ask(`/up?${query}`));
      assertEquals(answer, [BadRequest, says]);
      assertEquals(await exists(volume.file), false);
    });
  }
  await t.step("a reason with what else a URL has in it", async () => {
    await app.ask("/up?reason=a/b?c=d:9999#e");
    assertEquals((await volume.state()).reason, "a/b?c=d:9999");
  });
  await t.step("an emoji that is joined from others is a reason", async () => {
    const reason = "\u{1F469}\u200D\u{1F527} at work";
    await app.ask(`/up?reason=${encodeURIComponent(reason)}`);
    assertEquals((await volume.state()).reason, reason);
  });
});

Deno.test("a body on a toggle is a 400 that says where it belongs", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [method, body, status] of [
      ["POST", "Content-Length: 7\r\n\r\nfor=10m", BadRequest], // curl -d for=10m
      ["GET", "Content-Length: 7\r\n\r\nfor=10m", BadRequest],
      [
        "POST",
        "Transfer-Encoding: chunked\r\n\r\n7\r\nfor=10m\r\n0\r\n\r\n",
        BadRequest,
      ],
      ["POST", "Content-Length: 0\r\n\r\n", OK], // curl -X POST -d ''
      ["POST", "\r\n", OK],
      ["GET", "\r\n", OK],
    ] as const
  ) {
    await t.step(`${method} ${JSON.stringify(body)}: ${status}`, async () => {
      const isOk = status === OK;
      for (const path of ["/up", "/down"]) {
        if (path === "/down") await volume.touch();
        const wasUp = await exists(volume.file);
        const head = `${method} ${path} HTTP/1.1\r\nHost: a\r\n`;
        const request = `${head}Connection: close\r\n${body}`;
        const answer = await raw(app.port, request);
        assertStringIncludes(answer, `HTTP/1.1 ${status} `);
        assertEquals(answer.includes("into the URL: /down?for=10m"), !isOk);
        const isUp = await exists(volume.file);
        assertEquals(isUp, isOk ? path === "/up" : wasUp);
        if (isUp) await volume.rm();
      }
    });
  }
  await t.step("POST over HTTP/2, which tells no length: 400", async () => {
    const session = http2.connect(`http://127.0.0.1:${app.port}`);
    const post = async (path: string, body: string) => {
      const request = session.request({ ":method": "POST", ":path": path });
      const answered = Promise.withResolvers<number>();
      request.on(
        "response",
        (headers) => answered.resolve(headers[":status"]!),
      );
      request.end(body);
      return await answered.promise;
    };
    await volume.touch();
    assertEquals(await post("/down", "for=10m"), BadRequest);
    assert(await exists(volume.file));
    assertEquals(await post("/down", ""), OK);
    session.close();
  });
});

patiently("a drain ends by itself, even after a restart", async (t) => {
  await sideBySide(t, {
    "with nobody asking": async () => {
      await using volume = await makeVolume();
      await using app = await start(volume);
      await app.ask("/up");
      await app.ask("/down?for=1s");
      const ends = Date.parse((await volume.state()).until);
      await until("the file is back", () => exists(volume.file), 3_000);
      assert(Date.now() >= ends, `${ends - Date.now()} ms early`);
      await app.logs("app is up: its drain is over");
    },
    "after a crash in the middle": async () => {
      await using volume = await makeVolume();
      {
        await using app = await start(volume);
        await app.ask("/down?for=3s");
      }
      await using app = await start(volume);
      assertEquals(await exists(volume.file), false);
      await app.logs("app is up: its drain is over");
      assertEquals(await exists(volume.file), true);
    },
    "once it can, with an attempt a second": async () => {
      await using volume = await makeVolume();
      await volume.store({ up: false, until: inMs(0) });
      await Deno.mkdir(volume.file);
      await using app = await start(volume);
      await app.logs("not a regular file");
      const spent = () => {
        const tasks = [...Deno.readDirSync(`/proc/${app.pid}/task`)];
        return tasks.reduce((sum, { name }) => {
          const stat = `/proc/${app.pid}/task/${name}/schedstat`;
          return sum + Number(Deno.readTextFileSync(stat).split(" ")[0]) / 1e6;
        }, 0);
      };
      const before = spent();
      await after(1_000);
      const ms = spent() - before;
      assert(ms < 100, `it is busy: ${ms} ms of CPU in a second`);
      await Deno.remove(volume.file);
      await until("it ends after all", () => exists(volume.file));
    },
  });
});

Deno.test("a reason goes to the log, the state file and the page", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const reason = `${"é".repeat(180)} "db" <b>&\u{1F6A7}`;
  await app.ask(`/down?for=1h&reason=${encodeURIComponent(reason)}`);
  const state = await volume.state();
  assertEquals(state.reason, reason);
  await app.logs(`because ${JSON.stringify(reason)}`);
  const { status, body } = await app.ask("/");
  assertEquals(status, OK);
  for (const detail of [reason, state.since, state.by, state.until]) {
    assertStringIncludes(body, detail);
  }
  await app.ask("/down"); // calls the drain off, and changes nothing else
  assertEquals((await volume.state()).reason, reason);
  assertEquals((await volume.state()).since, state.since);
  await app.ask("/up?reason=");
  assertEquals("reason" in await volume.state(), false);
});

// ---------------------------------------------------------------------------
// The start

patiently("UP_INITIAL counts once, in a new volume", async (t) => {
  const up = { UP_INITIAL: "up" };
  await sideBySide(t, {
    "down, if it is not set": async () => {
      await using volume = await makeVolume();
      await using _app = await start(volume);
      assertEquals(await exists(volume.file), false);
      const { up, by } = await volume.state();
      assertEquals([up, by], [false, "UP_INITIAL"]);
    },
    "up, but not after a crash": async () => {
      await using volume = await makeVolume();
      {
        await using app = await start(volume, up);
        await app.logs("app is up: UP_INITIAL");
        assertEquals(await exists(volume.file), true);
        await volume.rm();
      } // which is a kill -9
      await using app = await start(volume, up);
      await app.logs(`app is down: ${BY_HAND}`);
      assertEquals(await exists(volume.file), false);
    },
    "up, before a command does what it should": async () => {
      await using volume = await makeVolume();
      const env = { UP_FILE: volume.file, ...up };
      assertEquals((await run(["down"], env)).stdout, "app is down\n");
      assertEquals((await volume.state()).by, "appup down");
    },
    "up, once the volume can be written": async () => {
      await using volume = await makeVolume();
      await Deno.chmod(volume.folder, 0o555);
      await using app = await start(volume, up, WITHOUT_PRIVILEGES);
      await app.logs("Permission denied");
      assertEquals(await exists(volume.file), false);
      await Deno.chmod(volume.folder, 0o755);
      await app.logs("app is up: UP_INITIAL");
      assertEquals(await exists(volume.file), true);
    },
  });
});

patiently("a touch during the first look at a new volume counts", async () => {
  await using volume = await makeVolume();
  // As a postStart hook may do it, after the look and before the state.
  const preload = beforeChanges(
    `if (changes === 1) Deno.writeTextFileSync(${
      JSON.stringify(volume.file)
    }, "");`,
  );
  await using app = await start(volume, {}, [], preload);
  assertEquals(await exists(volume.file), true);
  await app.logs(`app is up: ${BY_HAND}`);
  assertEquals(await exists(volume.file), true);
}, IS_SOURCE);

// ---------------------------------------------------------------------------
// The state file

patiently("what is not a state is ignored and replaced", async (t) => {
  const since = "2026-01-01T00:00:00.000Z";
  const texts = [
    "{",
    "null",
    "[]",
    '"up"',
    "\0\0\0",
    JSON.stringify({ up: "yes", since, by: "x" }),
    JSON.stringify({ up: false, since: "long ago", by: "x" }),
    JSON.stringify({ up: false, since, by: "x", until: "soon" }),
    JSON.stringify({ up: false, since, by: "x", until: 0 }),
    JSON.stringify({ up: true, since, by: "x", until: since }),
    JSON.stringify({ up: false, since, until: since }),
    JSON.stringify({ up: false, since, by: "x", reason: "x".repeat(65_536) }),
    JSON.stringify({ up: false, since, by: 1 }),
    "\nforged",
    "[".repeat(32_000) + "]".repeat(32_000),
  ];
  const oddities: Record<string, (path: string) => Promise<unknown>> = {
    ...Object.fromEntries(texts.map((text) => [
      text.slice(0, 70),
      (path: string) => Deno.writeTextFile(path, text),
    ])),
    "a FIFO": (path) => new Deno.Command("mkfifo", { args: [path] }).output(),
    "a link that never ends": (path) => Deno.symlink("/dev/zero", path),
    "a broken link": (path) => Deno.symlink("/tmp/nowhere", path),
    "100 MB": async (path) => {
      await Deno.writeTextFile(path, "");
      await Deno.truncate(path, 1e8);
    },
    "a folder": (path) => Deno.mkdir(path),
    "a folder with something in it": (path) =>
      Deno.mkdir(`${path}/folder`, { recursive: true }),
  };
  const steps = Object.entries(oddities).map(([name, make]) => [
    name,
    async () => {
      await using volume = await makeVolume();
      await make(volume.stateFile);
      await using app = await start(volume, { UP_INITIAL: "up" });
      assertEquals(await brief(app.ask("/health")), [
        ServiceUnavailable,
        "app is down",
      ]);
      await app.logs(`${volume.stateFile}: `);
      assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
      const drain = await app.ask("/down?for=1h");
      assertEquals(await exists(volume.file), drain.status !== OK);
      assertEquals(drain.status === OK, !name.startsWith("a folder"));
      await app.ask("/up");
      assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
      assertMatch((await app.ask("/")).body, /by {5}GET \/down from 127/);
      const lines = app.log.filter((line) =>
        line.includes(`Z ${volume.stateFile}: `)
      );
      assertEquals(lines.length, 1, lines.join("\n"));
      assert(!app.log.join().includes("forged"), app.log.join("\n"));
      app.kill("SIGTERM");
      assertEquals((await app.ended).code, 0);
    },
  ]);
  await sideBySide(t, Object.fromEntries(steps));
});

Deno.test("a state forges no line of the log or the page", async () => {
  await using volume = await makeVolume();
  const odd = { by: "x\nforged", reason: "\u202e\nforged" };
  await volume.store({ up: false, ...odd });
  await using app = await start(volume);
  await app.logs("app is down: x");
  const { body } = await app.ask("/");
  assertStringIncludes(body, "app is down\n");
  const lines = [...app.log, ...body.split("\n")];
  assert(!lines.some((line) => line.startsWith("forged")), lines.join("\n"));
  assert(!lines.join().includes("\u202e"), lines.join("\n"));
});

fromSource(
  "a state that is removed while it is read does not exist",
  async () => {
    await using volume = await makeVolume();
    const preload = beforeChanges(
      "Deno.removeSync(args[0]);",
      ["readTextFile"],
    );
    await using app = await start(volume, {}, [], preload);
    await app.ask("/up");
    for (const path of ["/", "/up", "/down?for=1h", "/down?for=1h"]) {
      assertEquals((await app.ask(path)).status, OK);
    }
  },
);

Deno.test("a /down in a read-only folder fails and leaves the state as it was", async () => {
  await using volume = await makeVolume();
  await volume.touch();
  const state = { ...STATE, up: true, reason: "old" };
  await volume.store(state);
  await using app = await start(volume, {}, WITHOUT_PRIVILEGES);
  await Deno.chmod(volume.folder, 0o555);
  for (const path of ["/down", "/down?for=1h", "/down?reason=new"]) {
    const { status, body } = await app.ask(path);
    assertEquals(status, ServiceUnavailable);
    assertMatch(body, /^Permission denied /);
    assertEquals(await volume.state(), state);
    assertStringIncludes((await app.ask("/")).body, "why    old");
  }
  await Deno.chmod(volume.folder, 0o755);
});

fromSource(
  "a /down that cannot remove the file leaves the state as it was",
  async () => {
    await using volume = await makeVolume();
    await volume.touch();
    const state = { ...STATE, up: true, reason: "old" };
    await volume.store(state);
    const preload = beforeChanges(
      `if (args[0] === ${JSON.stringify(volume.file)}) throw new Error("no");`,
    );
    await using app = await start(volume, {}, [], preload);
    for (const path of ["/down", "/down?for=1h", "/down?reason=new"]) {
      assertEquals(await brief(app.ask(path)), [ServiceUnavailable, "no"]);
      assertEquals(await volume.state(), state);
      assertStringIncludes((await app.ask("/")).body, "why    old");
    }
  },
);

for (const code of ["EIO", "EMFILE"]) {
  fromSource(
    `${code} on the state loses no drain and hides no file`,
    async () => {
      await using volume = await makeVolume();
      const drain = { ...STATE, up: false, until: inMs(3_600_000) };
      await volume.store(drain);
      const fails = `${volume.folder}/fails`;
      await Deno.writeTextFile(fails, "");
      const preload = beforeChanges(
        `let fails = true;
      try { Deno.statSync(${JSON.stringify(fails)}); } catch { fails = false; }
      if (fails) throw Object.assign(new Error("${code}"), { code: "${code}" });`,
        ["readTextFile"],
      );
      await using app = await start(volume, {}, [], preload); // and settles
      for (const path of ["/up", "/down", "/down?for=1s"]) {
        assertEquals((await app.ask(path)).status, ServiceUnavailable);
        assertEquals(await exists(volume.file), false);
        assertEquals(await volume.state(), drain);
      }
      const { status, body } = await app.ask("/");
      assertEquals(status, OK);
      assertMatch(body, /^app is down\n/);
      await volume.touch();
      assertEquals((await scrape(app)).get("appup_up"), 1);
      assertMatch((await app.ask("/")).body, /^app is up\n/);
      await volume.rm();
      await Deno.remove(fails);
      assertStringIncludes(
        (await app.ask("/")).body,
        `until  ${drain.until}\n`,
      );
    },
  );
}

/** The file can be created, but nothing can be stored or removed. */
const nothingIsStored = beforeChanges(
  'if (name !== "writeFile") throw new Error("not permitted");',
);

fromSource("an /up that cannot store its state is still up", async () => {
  await using volume = await makeVolume();
  await volume.store({ up: false });
  await using app = await start(volume, {}, [], nothingIsStored);
  assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
  assertEquals(await exists(volume.file), true);
  await app.logs("not permitted");
  assertStringIncludes((await app.ask("/")).body, "by     GET /up from 127");
  assertEquals((await app.ask("/down")).status, ServiceUnavailable);
  assertEquals(await exists(volume.file), true);
});

fromSource("the log tells a change once its state is stored", async () => {
  await using volume = await makeVolume();
  const preload = beforeChanges(
    "await new Promise((go) => setTimeout(go, 50));",
  );
  await using _app = await start(volume, {}, undefined, preload);
  assertEquals((await volume.state()).by, "UP_INITIAL");
});

fromSource("EMFILE is one line in the log, whatever call met it", async () => {
  await using volume = await makeVolume();
  const preload = beforeChanges(
    'throw Object.assign(new Error("EMFILE"), { code: "EMFILE" });',
    ["open"],
  );
  await using app = await start(volume, {}, [], preload);
  for (const path of ["/up", "/down", "/up"]) {
    assertEquals((await app.ask(path)).status, ServiceUnavailable);
  }
  const lines = app.log.filter((line) => !line.includes("appup"));
  assertEquals(lines.length, 1, lines.join("\n"));
  assertStringIncludes(lines[0], "no descriptor is left");
});

patiently(
  "nothing in the place of the state's draft stops a flip",
  async (t) => {
    const oddities: Record<string, (path: string) => Promise<unknown>> = {
      "half a draft": (path) => Deno.writeTextFile(path, "{"),
      "a FIFO": (path) => new Deno.Command("mkfifo", { args: [path] }).output(),
      "a link to something else": async (path) => {
        await Deno.writeTextFile(`${path}.else`, "untouched");
        await Deno.symlink(`${path}.else`, path);
      },
      "a folder with something in it": (path) =>
        Deno.mkdir(`${path}/folder`, { recursive: true }),
    };
    for (const [name, make] of Object.entries(oddities)) {
      await t.step(name, async () => {
        await using volume = await makeVolume();
        const draft = `${volume.stateFile}.new`;
        await make(draft);
        await using app = await start(volume);
        assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
        assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
        const { status } = await app.ask("/down?for=1h");
        assertEquals(status === OK, !name.startsWith("a folder"));
        if (status === OK) assert((await volume.state()).until);
        if (await exists(`${draft}.else`)) {
          assertEquals(await Deno.readTextFile(`${draft}.else`), "untouched");
        }
      });
    }
  },
);

patiently(
  "on a full disk, up and down work, a drain is refused, and the log says so once",
  async (t) => {
    const isUp = async (app: { port: number }) =>
      (await ask(app.port, "/health")).status === OK;
    await sideBySide(t, {
      "no room": async () => {
        await using volume = await makeVolume();
        await using app = await start(volume, {}, onFullDisk(volume));
        assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
        const drain = await app.ask("/down?for=1h");
        assertEquals(drain.status, ServiceUnavailable);
        assertMatch(drain.body, /^No space left on device .*\/up\.txt/);
        assertEquals(await isUp(app), true);
        assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
        assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
        assertMatch((await app.ask("/")).body, /by {5}GET \/up from/);
        const line = "the state is not stored: No space left on device";
        assertEquals(app.log.filter((l) => l.includes(line)).length, 1);
      },
      "no room for a name": async () => {
        await using volume = await makeVolume();
        const wrapper = [
          ...onTmpfs(volume, "nr_inodes=2"),
          ...["sh", "-c", `touch ${volume.file} && exec "$@"`, "sh"],
        ];
        await using app = await start(volume, {}, wrapper);
        assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
      },
      "a volume that is not new": async () => {
        await using volume = await makeVolume();
        const before = '"$@" up >&2 && "$@" down >&2';
        const wrapper = onFullDisk(volume, 0, before);
        await using app = await start(volume, { UP_INITIAL: "up" }, wrapper);
        assertEquals(await isUp(app), false);
      },
      "a volume that is not new, with another user's state": async () => {
        await using volume = await makeVolume();
        const before = `"$@" up >&2 && chmod 444 ${volume.stateFile} &&` +
          ` ${WITHOUT_PRIVILEGES.join(" ")} "$@" down >&2`;
        const wrapper = onFullDisk(volume, 1, before);
        await using app = await start(volume, { UP_INITIAL: "up" }, wrapper);
        assertEquals(await isUp(app), false);
      },
    });
  },
  canMount,
);

patiently("nobody ever reads half a state", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up");
  let isFlipping = true;
  const flips = (async () => {
    for (let i = 0; i < 500; i++) {
      await app.ask(i % 2 ? "/up" : "/down?for=1h");
    }
    isFlipping = false;
  })();
  while (isFlipping) {
    const texts = Array.from(
      { length: 50 },
      () => Deno.readTextFileSync(volume.stateFile),
    );
    for (const text of texts) assertMatch(text, /^\{.*\}\n$/);
    await after(0);
  }
  await flips;
});

patiently(
  "after a kill -9, the last flip is done or not, and nothing changes later",
  async (t) => {
    const ASKS = [
      "/up",
      "/down",
      "/down?for=1h",
      "/down",
      "/up",
      "/down?for=1h",
    ];
    const round = async () => {
      await using volume = await makeVolume();
      let answered = -1;
      {
        await using app = await start(volume);
        const flips = (async () => {
          while (true) {
            const path = ASKS[(answered + 1) % ASKS.length];
            const more = path.includes("?") ? "&" : "?";
            await app.ask(`${path}${more}reason=${answered + 1}`);
            answered++;
          }
        })().catch(() => {});
        await until("some are answered", () => answered > 2);
        await after(50 * Math.random());
        app.kill("SIGKILL");
        await flips;
      }
      const isUp = await exists(volume.file);
      await using _app = await start(volume, { UP_INITIAL: "up" });
      const state = await volume.state();
      await after(1_200); // it settles again
      assertEquals(await exists(volume.file), isUp, "it flipped later");
      assertEquals(await volume.state(), state);
      assertEquals(state.up, isUp);
      const by = (n: number) => ASKS[n % ASKS.length];
      const possible = [answered, answered + 1]
        .filter((n) => by(n).startsWith("/up") === isUp);
      assert(possible.length > 0, `${by(answered)} was undone`);
      // Between its two writes, a kill leaves the app up and the state unknown.
      if (isUp && state.by === BY_HAND) return;
      assert(possible.includes(Number(state.reason)), JSON.stringify(state));
      assertEquals("until" in state, by(Number(state.reason)).includes("for"));
    };
    const rounds = Array.from({ length: 8 }, (_, i) => [`${i + 1}`, round]);
    await sideBySide(t, Object.fromEntries(rounds));
  },
);

// ---------------------------------------------------------------------------
// Every history

// The real Switch, over a disk in memory and a clock that the test sets. Each
// act is also cut at each of its writes, by a kill or by a hand on the file.

/** What the pod may be. */
interface World {
  up: boolean;
  end?: number; // of its drain, in ms since 1970
  isNew?: "up" | "down"; // how the new volume is to start
  unseen?: World[]; // what it may have been, if no appup has looked since
}
type Step = { act: string; cut?: "kill" | "touch" | "rm"; write?: number };
type History = { beginning: World; room: typeof ROOMS[number]; steps: Step[] };

const HOUR = 3_600_000;
const BEGIN = Date.UTC(2026, 0, 1);
const DRAIN = { ms: 1.5 * HOUR, text: "90m" };
const BEGINNINGS: World[] = [
  { up: false, isNew: "up" },
  { up: false, isNew: "down" },
  { up: true },
  { up: false },
  { up: false, end: BEGIN + 5 * HOUR },
  { up: false, end: BEGIN - HOUR },
];
const ROOMS = ["enough", "for no text", "for no draft"] as const;
const ACTS = ["server", "command"]
  .flatMap((who) => [`${who} up`, `${who} down`, `${who} drain`])
  .concat("server settle", "restart settle", "hand touch", "hand rm");

/** What each act may make of a world. */
const RULES: Record<string, (world: World, now: number) => World[]> = {
  up: () => [{ up: true }],
  down: () => [{ up: false }],
  drain: (_, now) => [{ up: false, end: now + DRAIN.ms }],
  settle: ({ up, end, isNew }, now) =>
    isNew || end! <= now ? [{ up: isNew !== "down" }] : [{ up, end }],
  // On a full disk, it is in vain.
  touch: (world) =>
    world.up ? [world] : [world, { up: true, unseen: world.unseen ?? [world] }],
  // A window: what is undone by hand before a look leaves no trace.
  rm: (world) => world.up ? [{ up: false }, ...world.unseen ?? []] : [world],
};

// They are made once, because their stacks cost most.
const MISSING = new Deno.errors.NotFound();
const EXISTS = new Deno.errors.AlreadyExists();
const FAILURE = new Error("no room, or killed");

class Disk {
  now = BEGIN;
  step: Partial<Step> = {};
  writes: ("touch" | "rm")[] = []; // in this step: what a hand could do at each
  private files = new Map<string, string>();

  constructor({ up, end, isNew }: World, private room: History["room"]) {
    const until = end && new Date(end).toISOString();
    const state = JSON.stringify({ ...STATE, up, until });
    if (!isNew) this.files.set("/v/up.txt.state", state);
    if (up) this.touch();
  }

  isUp = () => this.files.has("/v/up.txt");
  isFull = () => this.room === "for no draft" && this.files.size > 1;
  touch = () => this.isUp() || this.isFull() || this.files.set("/v/up.txt", "");
  rm = () => this.files.delete("/v/up.txt");
  stat = (path: string) => ({ isFile: true, size: this.find(path).length });

  private find(path: string): string {
    if (!this.files.has(path)) throw MISSING;
    return this.files.get(path)!;
  }

  private async write(change: () => void) {
    const { cut, write } = await this.step;
    if (cut === "kill" && this.writes.length >= write!) throw FAILURE;
    if (cut !== "kill" && this.writes.length === write) this[cut!]();
    this.writes.push(this.isUp() ? "rm" : "touch");
    change();
  }

  private put = (path: string, content: unknown, { createNew = false } = {}) =>
    this.write(() => {
      if (createNew && this.files.has(path)) throw EXISTS;
      if (!this.files.has(path) && this.isFull()) throw FAILURE;
      this.files.set(path, "");
      if (`${content}` && this.room === "for no text") throw FAILURE;
      this.files.set(path, `${content}`);
    });

  private move = async (from: string, to?: string) => {
    this.find(from);
    await this.write(() => {
      if (to) this.files.set(to, this.find(from));
      if (!this.files.delete(from)) throw MISSING;
    });
  };

  /** What Switch calls of Deno. */
  calls = {
    statSync: (path: string) => path === "/v" || this.stat(path),
    lstat: async (path: string) => await this.stat(path),
    readTextFile: async (path: string) => await this.find(path),
    writeFile: this.put,
    writeTextFile: this.put,
    rename: this.move,
    remove: this.move,
    open: () => ({ tryLock: async () => await true, [Symbol.dispose]() {} }),
  };
}

/** Returns whether a history ends as it may, and the writes of its last act. */
async function play(Class: typeof Switch, { beginning, room, steps }: History) {
  const disk = new Disk(beginning, room);
  Object.assign(Deno, disk.calls);
  Date.now = () => disk.now;
  const log = { event() {}, trouble() {} };
  const start = () => new Class("/v/up.txt", log, beginning.isNew !== "down");
  let server = start();
  if (!beginning.isNew && !(beginning.end! < BEGIN)) await server.settle();
  let worlds = [beginning];
  const follow = (from: World[], act: string) =>
    from.flatMap((world) => RULES[act](world, disk.now));
  const observe = (plans: string[][], isKilled = false) => {
    const possible = plans.flatMap((plan) => plan.reduce(follow, worlds));
    worlds = possible.filter(({ up }) => up === disk.isUp());
    // A window: what a kill left half done, a hand may complete before a look.
    if (isKilled) worlds = worlds.map((it) => ({ ...it, unseen: possible }));
  };
  for (const step of steps) {
    const { act, cut } = step;
    const [who, what] = act.split(" ");
    const isKilled = cut === "kill";
    if (who === "restart") server = start();
    const one = who === "command" ? start() : server;
    const perform = async (): Promise<unknown> => {
      if (what === "touch" || what === "rm") return disk[what]();
      if (what === "settle") return await one.settle();
      const drain = what === "drain" ? DRAIN : undefined;
      return await one.flip(what === "up", who, { drain });
    };
    disk.now += HOUR / 60;
    Object.assign(disk, { step, writes: [] });
    const isDone = await perform().then(() => true, () => false);
    if (isKilled && one === server) server = start();

    // What fails or is killed may have settled, as each flip does first.
    const mayFail = what === "drain" && room !== "enough";
    let plans = isDone || isKilled ? [[what]] : [];
    if (isKilled || !isDone && mayFail) plans.push([], ["settle"]);
    if (cut && !isKilled) {
      plans = plans.flatMap((plan) => [[cut, ...plan], [...plan, cut]]);
    }
    observe(plans, isKilled);
  }
  const { writes } = disk;
  Object.assign(disk, { step: {}, writes: [] });
  for (const hours of [1, 2, 6, 48]) {
    disk.now = BEGIN + hours * HOUR;
    await server.settle();
    observe([["settle"]]);
  }
  return { isRight: worlds.length > 0, writes };
}

/** Returns the shortest wrong history: two acts, also cut, or three uncut. */
async function findWrong(Class: typeof Switch): Promise<History | undefined> {
  const histories: History[] = BEGINNINGS.flatMap((beginning) =>
    ROOMS.map((room) => ({ beginning, room, steps: [] }))
  );
  const calls = Object.keys(new Disk(BEGINNINGS[0], "enough").calls);
  const real = calls.map((name) => [name, Deno[name as "stat"]]);
  const { now } = Date;
  try {
    for (const { steps, ...place } of histories) {
      const next: Step[] = ACTS.map((act) => ({ act }));
      for (const step of next) {
        const history = { ...place, steps: [...steps, step] };
        const { isRight, writes } = await play(Class, history);
        if (!isRight) return history;
        const most = history.steps.some(({ cut }) => cut) ? 2 : 3;
        if (history.steps.length < most) histories.push(history);
        if (step.cut || steps.length === 2) continue;
        for (const [write, hand] of writes.entries()) {
          next.push({ ...step, cut: "kill", write });
          next.push({ ...step, cut: hand, write });
        }
      }
    }
  } finally {
    Object.assign(Deno, Object.fromEntries(real));
    Date.now = now;
  }
}

fromSource("every history ends as its acts allow", async () => {
  assertEquals(await findWrong(Switch), undefined);
});

fromSource("each mistake in the switch is found by a history", async (t) => {
  const source = await Deno.readTextFile(`${import.meta.dirname}/main.ts`);
  for (
    const [right, wrong] of [
      ["    await this.store(state);\n", ""], // stored once the file is gone
      ['writeTextFile(this.path, "")', "remove(this.path)"],
      ["{ ...known, until: undefined }", "known"],
      ["if (stored?.up === up)", "if (stored)"],
      ["if (state.until) throw error;", ""],
      ["await this.stateFile.discardDraft();\n    const", "const"],
      ["!up && !stored &&", "!up && !stored?.state &&"],
    ]
  ) {
    await t.step(`${right} → ${wrong}`, async () => {
      const parts = source.split(right);
      assertEquals(parts.length, 2);
      const code = encodeURIComponent(parts.join(wrong));
      const module = await import(`data:application/typescript,${code}`);
      assert(await findWrong(module.Switch));
    });
  }
});

// ---------------------------------------------------------------------------
// Other processes

patiently(
  "while another process holds the lock, nothing flips and the rest answers",
  async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    const env = { UP_FILE: volume.file };
    {
      using _lock = await volume.lock();
      const asked = Date.now();
      let isOver = false;
      const toggles = Array.from({ length: 20 }, async () => {
        const answer = await app.ask("/up");
        isOver = true;
        return answer;
      });
      const shell = run(["up"], env);
      await after(1_000);
      const late = [app.ask("/up"), app.ask("/down?for=1h")];
      for (const path of ["/health", "/", "/metrics"]) await app.ask(path);
      assertEquals(await brief(app.ask("/livez")), [OK, "ok"]);
      assert(!isOver, "something waited for the lock");
      for (const toggle of await Promise.all([...toggles, ...late])) {
        assertEquals(toggle.status, ServiceUnavailable);
        assertStringIncludes(toggle.body, `keeps ${volume.folder} locked`);
      }
      assert(Date.now() - asked < 10_000, "each waited for the one before it");
      const { code, stdout, stderr } = await shell;
      assertEquals([code, stdout], [1, ""]);
      assertStringIncludes(stderr, `keeps ${volume.folder} locked`);
      assertEquals(await exists(volume.file), false);
    }
    assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
    assertEquals((await run(["down"], env)).stdout, "app is down\n");
  },
);

Deno.test({
  name: "a file system without locks is one line in the log",
  ignore: !hasStrace,
  fn: async () => {
    await using volume = await makeVolume();
    const wrapper = ["strace", "-Dfqq", "-o/dev/null", "-etrace=flock"];
    const inject = ["-e", "inject=flock:error=ENOLCK", "--"];
    await using app = await start(volume, {}, [...wrapper, ...inject]);
    assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
    assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
    const line = `no locks on ${volume.folder}: No locks available`;
    await app.logs(line);
    assertEquals(app.log.filter((l) => l.includes(line)).length, 1);
  },
});

patiently(
  "two servers and many commands agree on who flipped last",
  async () => {
    await using volume = await makeVolume();
    await using one = await start(volume);
    await using other = await start(volume);
    const env = { UP_FILE: volume.file };
    const asks = ["/up", "/down", "/down?for=1h", "/up?reason=x"];
    const shells = [["up"], ["down"], ["down", "--for", "1h"]].map(
      async (args) => {
        for (let i = 0; i < 5; i++) {
          assertEquals(
            (await run(args, env)).code,
            0,
          );
        }
      },
    );
    const clients = [one, other].map(async (app) => {
      for (let i = 0; i < 200; i++) await app.ask(asks[i % asks.length]);
    });
    await Promise.all([...shells, ...clients]);
    assertEquals((await volume.state()).up, await exists(volume.file));

    for (const last of ["/down?for=1h&reason=last", "/up?reason=last"]) {
      for (const app of [one, other, one]) {
        await Promise.all(asks.map((path) => other.ask(path)));
        assertEquals((await app.ask(last)).status, OK);
        const { up, reason } = await volume.state();
        assertEquals([up, reason], [last.startsWith("/up"), "last"]);
        assertEquals(await exists(volume.file), up);
      }
    }
    const log = [...one.log, ...other.log].join("\n");
    assert(!log.includes(BY_HAND), log);
  },
);

Deno.test("a /down after an rm does not claim it", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up");
  await volume.rm();
  assertEquals((await app.ask("/down")).status, ServiceUnavailable);
  assertEquals((await volume.state()).by, BY_HAND);
  assertStringIncludes((await app.ask("/")).body, `\nby     ${BY_HAND}\n`);
  await app.logs(`app is down: ${BY_HAND}`);
  assert(!app.log.join().includes("/down from"));
});

patiently("an /up amid touches and rms is never an error", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  let isBusy = true;
  const others = Array.from({ length: 2 }, async () => {
    while (isBusy) {
      await volume.touch();
      await volume.rm().catch(() => {});
    }
  });
  const answers = [];
  for (let i = 0; i < 400; i++) answers.push(await brief(app.ask("/up")));
  isBusy = false;
  await Promise.all(others);
  for (const answer of answers) assertEquals(answer, [OK, "app is up"]);
});

// ---------------------------------------------------------------------------
// Who may flip it

Deno.test("with UP_TOKEN, only the toggles require it", async (t) => {
  await using volume = await makeVolume();
  const token = "s3cr3t/+~.-_=!";
  await using app = await start(volume, { UP_TOKEN: token });
  for (
    const [authorization, status] of [
      [undefined, Unauthorized],
      ["", Unauthorized],
      [token, Unauthorized],
      ["Bearer", Unauthorized],
      ["Bearer wrong", Unauthorized],
      [`Bearer ${token}x`, Unauthorized],
      [`Bearer ${token.slice(0, -1)}`, Unauthorized],
      [`Bearer ${token.toUpperCase()}`, Unauthorized],
      [`Basic ${btoa(`x:${token}`)}`, Unauthorized],
      [`Bearer ${token}`, OK],
      [`bearer ${token}`, OK],
    ] as const
  ) {
    await t.step(`Authorization: ${authorization}`, async () => {
      const headers: HeadersInit = authorization === undefined
        ? {}
        : { authorization };
      for (
        const [path, isThere] of [["/up", false], ["/down", true]] as const
      ) {
        if (isThere) await volume.touch();
        const answer = await app.ask(path, { headers });
        assertEquals(answer.status, status);
        const challenge = answer.headers.get("www-authenticate");
        assertEquals(challenge, status === OK ? null : "Bearer");
        if (status === Unauthorized) {
          const message = "a token is required: Authorization: Bearer TOKEN";
          assertEquals(answer.body, message);
        }
        assertEquals(await exists(volume.file), isThere !== (status === OK));
        if (isThere && status !== OK) await volume.rm();
        if (!isThere && status === OK) await volume.rm();
      }
    });
  }
  await t.step("what only reads is open", async () => {
    for (const path of ["/livez", "/metrics", "/"]) {
      assertEquals((await app.ask(path)).status, OK, path);
    }
    assertEquals((await app.ask("/health")).status, ServiceUnavailable);
  });
  app.kill("SIGTERM");
  const { errors } = await app.ended;
  assert(!`${app.log}${errors}`.includes("s3cr3t"));
});

Deno.test("another site's page may not flip the switch", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const here = `127.0.0.1:${app.port}`;
  const chromium = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0";
  const powershell =
    "User-Agent: Mozilla/5.0 (Windows NT 10.0; en-US) WindowsPowerShell/5.1";
  for (
    const [headers, status] of [
      [[], OK],
      [["User-Agent: curl/8.5.0"], OK],
      [["User-Agent: Go-http-client/1.1"], OK],
      [["User-Agent: not Mozilla/5.0"], OK],
      [[powershell], OK],
      [["User-Agent: Mozilla/5.0 (Macintosh) PowerShell/7.5.0"], OK],
      [[chromium], Forbidden],
      [["user-agent: Mozilla/"], Forbidden],
      [[chromium, "Sec-Fetch-Site: none"], OK],
      [[chromium, "Sec-Fetch-Site: same-origin"], OK],
      [[chromium, "Sec-Fetch-Site: same-site"], Forbidden],
      [[chromium, "Sec-Fetch-Site: cross-site"], Forbidden],
      [[chromium, "Sec-Fetch-Site: "], Forbidden],
      [[chromium, "Sec-Fetch-Site: None"], Forbidden],
      [[chromium, "Sec-Fetch-Site: nonesuch"], Forbidden],
      [[chromium, "Sec-Fetch-Site: none, none"], Forbidden],
      [[chromium, "Sec-Fetch-Mode: navigate"], Forbidden],
      [
        [chromium, "Sec-Fetch-Site: none", "Sec-Purpose: prefetch"],
        Forbidden,
      ],
      // So a certificate's issuer is fetched, from the address that it names.
      [
        [chromium, "Sec-Fetch-Site: none", "Sec-Fetch-Mode: no-cors"],
        Forbidden,
      ],
      [[chromium, "Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"], OK],
      [["Sec-Fetch-Site: none"], OK],
      [["Sec-Fetch-Site: cross-site"], Forbidden],
      [["Sec-Fetch-Dest: image"], Forbidden],
      [[powershell, "Sec-Fetch-Site: cross-site"], Forbidden],
      [[`Origin: http://${here}`], OK],
      [[`Origin: http://${here}`, chromium], Forbidden],
      [["Origin: http://127.0.0.1"], Forbidden],
      [["Origin: http://evil.example"], Forbidden],
      [[`Origin: http://${here}.evil.example`], Forbidden],
      [["Origin: null"], Forbidden],
      [["Origin: "], Forbidden],
    ] as const
  ) {
    await t.step(headers.join(", "), async () => {
      const lines = [`Host: ${here}`, ...headers, "Connection: close"];
      const head = `HTTP/1.1\r\n${lines.join("\r\n")}\r\n\r\n`;
      for (const path of ["/up", "/down"]) {
        if (path === "/down") await volume.touch();
        const wasThere = await exists(volume.file);
        const answer = await raw(app.port, `GET ${path} ${head}`);
        assertStringIncludes(answer, `HTTP/1.1 ${status} `);
        const isThere = await exists(volume.file);
        assertEquals(isThere, status === OK ? path === "/up" : wasThere);
        if (isThere) await volume.rm();
      }
      const answer = await raw(app.port, `GET /livez ${head}`);
      assertStringIncludes(answer, "HTTP/1.1 200 ");
    });
  }
});

Deno.test({
  name: "with UP_FROM=pod, only the pod itself may toggle",
  ignore: !hasCurl || !hasIPv6,
  fn: async (t) => {
    await using volume = await makeVolume();
    await using app = await start(volume, { UP_FROM: "pod", UP_TOKEN: "t" });
    const answer = async (from: string, to: string, ...options: string[]) => {
      const { stdout } = await new Deno.Command("curl", {
        args: [
          ...["--silent", "--max-time", "5", "--noproxy", "*"],
          ...["--interface", from, "--write-out", " %{http_code}", ...options],
          to,
        ],
      }).output();
      return new TextDecoder().decode(stdout);
    };
    const token = ["--header", "Authorization: Bearer t"];
    for (
      const [from, host, options, status] of [
        ["127.0.0.1", "127.0.0.1", token, OK],
        ["::1", "[::1]", token, OK],
        ["127.0.0.1", "127.0.0.6", token, OK],
        ["127.0.0.6", "127.0.0.1", token, Forbidden], // Istio's inbound address
        ["127.0.0.10", "127.0.0.1", token, Forbidden],
        ["127.0.0.1", "127.0.0.1", [], Unauthorized],
      ] as const
    ) {
      await t.step(`from ${from} to ${host}: ${status}`, async () => {
        const url = `http://${host}:${app.port}`;
        for (const [path, isUp] of [["/up", true], ["/down", false]] as const) {
          if (!isUp) await volume.touch();
          const said = await answer(from, url + path, ...options);
          assert(said.endsWith(` ${status}`), said);
          if (status === Forbidden) assertStringIncludes(said, "port-forward");
          assertEquals(await exists(volume.file), (status === OK) === isUp);
          if (await exists(volume.file)) await volume.rm();
        }
        for (const path of ["/health", "/livez", "/metrics", "/"]) {
          const said = await answer(from, url + path);
          assert(said.endsWith(path === "/health" ? " 503" : " 200"), said);
        }
      });
    }
  },
});

Deno.test("an invalid Host header is a 400 and never changes the path", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [host, status] of [
      ["localhost", ServiceUnavailable],
      ["LocalHost:9999", ServiceUnavailable],
      ["my_app.default.svc:80", ServiceUnavailable],
      ["10.0.0.7:0", ServiceUnavailable],
      ["[::1]:65535", ServiceUnavailable],
      ["[fe80::1]", ServiceUnavailable],
      ["a:", ServiceUnavailable], // a port may be empty (RFC 3986, 3.2.3)
      ["", ServiceUnavailable], // from who knows none (RFC 9112, 3.2)
      ["a/up?x=", BadRequest],
      ["a/up#", BadRequest],
      ["a\\up", BadRequest],
      ["u@a", BadRequest],
      ["a:655360", BadRequest],
      ["a:b", BadRequest],
      ["::1", BadRequest],
      ["a b", BadRequest],
      ["\u00e4", BadRequest],
      ["a\x1b[2J", BadRequest],
      ["a/up?x=\r\nHost: a", BadRequest],
      ["a/health?x=", BadRequest],
      ["a/health#", BadRequest],
      ["a/", BadRequest],
    ] as const
  ) {
    await t.step(JSON.stringify(host).slice(0, 70), async () => {
      const request = `GET /health HTTP/1.1\r\nHost: ${host}\r\n` +
        "Connection: close\r\n\r\n";
      const answer = await raw(app.port, request);
      assertStringIncludes(answer, `HTTP/1.1 ${status} `);
      const says = status === BadRequest
        ? /\r\n\r\n(invalid Host header)?$/ // Deno refuses some without a word
        : /\r\n\r\napp is down$/;
      assertMatch(answer, says);
      assertEquals(await exists(volume.file), false);
    });
  }
  await t.step("no Host at all, as HTTP/1.0 has it", async () => {
    const answer = await raw(app.port, "GET /health HTTP/1.0\r\n\r\n");
    assertMatch(answer, /^HTTP\/1\.0 503 [^]*app is down$/);
  });
  await t.step("two of them", async () => {
    const answer = await raw(
      app.port,
      "GET /health HTTP/1.1\r\nHost: a\r\nHost: a/up?\r\n" +
        "Connection: close\r\n\r\n",
    );
    assert(!answer.startsWith("HTTP/1.1 200 "), answer);
    assertEquals(await exists(volume.file), false);
  });
  await t.step("a slash in the query", async () => {
    const { status } = await app.ask("/health?from=/up");
    assertEquals(status, ServiceUnavailable);
  });
  for (
    const [target, host, answer] of [
      ["http://b/up", "a", "200 up"], // what RFC 9112, 3.2.2 asks for
      ["https://b/up", "a", "200 up"], // as from a proxy that ends TLS
      ["https://b/health", "a", "503"],
      ["http://b/up", "a/up?", "400"],
      ["/up", "a/up?", "400"],
      ["/up?x=/", "a/b", "400"],
      ["//up", "a", "404"],
      ["/./up", "a", "404"],
      ["/%75p", "a", "404"],
      ["*", "a", "400"],
      ["http://b?/up?/", "a", "200"],
      ["http://b#/up?/", "a", "200"],
      ["http://up?x", "a", "200"],
      ["https://up?x", "a", "200"],
      ["https://u/health/up", "a", "404"],
      ["ab://u/health/up", "a", "404"],
      ["x://health/up", "a", "200 up"],
      ["http://u@a/up", "a", "400"],
      ["http://u@a/up?/", "a", "400"],
      ["http://a:99999/up?/", "a", "400"],
      ["http://a%2f/up?/", "a", "400"],
      ["/up?reason=/up", "a", "200 up"],
    ]
  ) {
    await t.step(`${target} from ${host}`, async () => {
      const request = `GET ${target} HTTP/1.1\r\nHost: ${host}\r\n` +
        "Connection: close\r\n\r\n";
      const [, status] = (await raw(app.port, request)).split(" ");
      const isUp = await exists(volume.file);
      assertEquals(isUp ? `${status} up` : status, answer);
      if (isUp) await volume.rm();
    });
  }
  assertEquals(
    app.log.filter((line) => !/appup|UP_INITIAL|\/up from|hand/.test(line)),
    [],
  );
});

// ---------------------------------------------------------------------------
// Watching it

Deno.test("/livez is 200 whether up or down", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  assertEquals(await brief(app.ask("/livez")), [OK, "ok"]);
  await app.ask("/up");
  assertEquals(await brief(app.ask("/livez")), [OK, "ok"]);
});

/** A scrape: samples by name and labels; each family has HELP and TYPE. */
async function scrape(app: { port: number }) {
  const { body } = await ask(app.port, "/metrics");
  assert(body.endsWith("\n"));
  const types = new Map<string, string>();
  const samples = new Map<string, number>();
  for (const line of body.trimEnd().split("\n")) {
    const [, kind, name, rest] = /^# (HELP|TYPE) (\w+) (.+)$/.exec(line) ?? [];
    if (kind === "TYPE") types.set(name, rest);
    if (kind) continue;
    const [, sample, value] = /^(\w+(?:\{[^}]*\})?) (\S+)$/.exec(line) ?? [];
    assert(types.has(sample?.split("{")[0]), line);
    samples.set(sample, Number(value));
  }
  return samples;
}

Deno.test("/metrics has the state, the flips, the requests and the memory", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const began = Date.now() / 1000;
  const first = await scrape(app);
  assertEquals(first.get("appup_up"), 0);
  assertEquals(first.get('appup_transitions_total{to="up"}'), 0);
  assertEquals(first.get('appup_transitions_total{to="down"}'), 0);
  assertEquals(first.get(`appup_build_info{version="${manifest.version}"}`), 1);
  assert(Math.abs(began - first.get("process_start_time_seconds")!) < 10);
  assert(first.get("process_resident_memory_bytes")! > 1e6);
  assertEquals(first.has("appup_drain_ends_timestamp_seconds"), false);
  assertEquals(first.get("appup_last_health_request_timestamp_seconds"), 0);

  await app.ask("/up");
  await app.ask("/up");
  await app.ask("/down");
  await volume.touch();
  await app.ask("/health");
  const asked = Date.now() / 1000;
  await app.ask("/down?for=1h");
  await app.ask("/down?for=x");
  await app.ask("/down", { method: "PUT" });
  for (const path of ["/nope", "/health/1", "/metrics/x"]) await app.ask(path);
  const second = await scrape(app);
  assertEquals(second.get("appup_up"), 0);
  assertEquals(second.get('appup_transitions_total{to="up"}'), 2);
  assertEquals(second.get('appup_transitions_total{to="down"}'), 2);
  assertEquals(
    second.get("appup_drain_ends_timestamp_seconds"),
    Date.parse((await volume.state()).until) / 1000,
  );
  const last = second.get("appup_last_health_request_timestamp_seconds")!;
  assert(Math.abs(asked - last) < 1);
  const requests = Object.fromEntries(
    [...second].filter(([name]) => name.startsWith("appup_requests_total")),
  );
  assertEquals(requests, {
    'appup_requests_total{path="/metrics",code="200"}': 1,
    'appup_requests_total{path="/up",code="200"}': 2,
    'appup_requests_total{path="/down",code="200"}': 2,
    'appup_requests_total{path="/health",code="200"}': 1,
    'appup_requests_total{path="/down",code="400"}': 1,
    'appup_requests_total{path="/down",code="405"}': 1,
  });

  await volume.touch();
  const third = await scrape(app);
  assertEquals(third.get("appup_up"), 1);
  assertEquals(third.has("appup_drain_ends_timestamp_seconds"), false);
});

Deno.test("/ has the state and the endpoints, at once", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up?reason=deployed");
  assertMatch((await app.ask("/")).body, /^app is up\n[^]*deployed/);
  await volume.rm();
  const { body } = await app.ask("/");
  assertMatch(body, /^app is down\nsince {2}\S+\nby {5}changed by hand\nprobe/);
  for (const path of ["/up", "/down", "/health", "/livez", "/metrics"]) {
    assertMatch(body, new RegExp(`^${path} `, "m"));
  }
});

Deno.test("/ says who probed last, and what the answer was", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const seen = async () =>
    (await app.ask("/")).body.split("\n").find((l) => l.startsWith("probe  "))
      ?.replace(/\d\.\d s/, "0.6 s");
  await t.step("nobody", async () => {
    for (const path of ["/up", "/down", "/livez", "/"]) await app.ask(path);
    const none = "none since the start: does a readinessProbe point here?";
    assertEquals(await seen(), `probe  ${none}`);
  });
  const probe = (agent: string) =>
    raw(app.port, PROBE.replace(/User-Agent: .*\r\n/, agent));
  for (
    const [agent, by] of [
      ["User-Agent: kube-probe/1.34\r\n", "kube-probe/1.34"],
      ["", "an unnamed client"],
      ["User-Agent: \r\n", "an unnamed client"],
      [`User-Agent: ${"x".repeat(9_000)}\r\n`, "x".repeat(60)],
      ["User-Agent: \u00e4\u009b2J\tb\r\n", "????2J?b"], // UTF-8 as Latin-1
    ]
  ) {
    await t.step(agent.slice(0, 40), async () => {
      for (const [toggle, status] of [["/up", OK], ["/down", 503]] as const) {
        await app.ask(toggle);
        await probe(agent);
        const line = `probe  0.6 s ago by ${by}, answered ${status}`;
        assertEquals(await seen(), line);
      }
    });
  }
  await t.step("a probe that failed", async () => {
    await app.ask("/up");
    await Deno.rename(volume.folder, `${volume.folder}-away`);
    await app.probe();
    await Deno.rename(`${volume.folder}-away`, volume.folder);
    assertMatch(await seen() ?? "", /, answered 503$/);
  });
});

// ---------------------------------------------------------------------------
// The command line

patiently("the command line flips the file, without a server", async (t) => {
  await using volume = await makeVolume();
  const env = { UP_FILE: volume.file, UP_TOKEN: "not-asked-for-here" };
  for (
    const [args, code, stdout, isThere] of [
      ["down", 0, "app is already down", false],
      ["up", 0, "app is up", true],
      ["up --reason=again", 0, "app is up", true],
      ["down --for 10m --reason deploy", 0, "app is down for 10m", false],
      ["down --reason=x --for=90", 0, "app is down for 90s", false],
      ["down --for=1h30m", 0, "app is down for 1h30m", false],
      ["up", 0, "app is up", true],
      ["down", 0, "app is down", false],
      ["--version", 0, `appup ${manifest.version}`, false],
    ] as const
  ) {
    await t.step(`appup ${args}`, async () => {
      const result = await run(args.split(" "), env);
      assertEquals(result, { code, stdout: `${stdout}\n`, stderr: "" });
      assertEquals(await exists(volume.file), isThere);
    });
  }
  await t.step("appup health prints the state as / does", async () => {
    await run(["down", "--for", "10m", "--reason", "deploy"], env);
    const { since, until } = await volume.state();
    const state =
      `since  ${since}\nby     appup down\nwhy    deploy\nuntil  ${until}\n`;
    assertEquals(await run(["health"], env), {
      code: 1,
      stdout: `app is down\n${state}`,
      stderr: "",
    });
    await run(["up"], env);
    const { code, stdout } = await run(["health"], env);
    assertEquals(code, 0);
    assertMatch(stdout, /^app is up\nsince {2}\S+\nby {5}appup up\n$/);
    await volume.rm();
    assertMatch(
      (await run(["health"], env)).stdout,
      /^app is down\nsince {2}\S+\nby {5}changed by hand\n$/,
    );
  });
  for (
    const args of [
      "--help",
      "-h",
      "help",
      "up --help",
      "down --help",
      "down --for 10m -h",
      "health -h",
      "--help up",
    ]
  ) {
    await t.step(`appup ${args}`, async () => {
      const { code, stdout, stderr } = await run(args.split(" "), env);
      assertEquals([code, stderr], [0, ""]);
      for (const word of ["appup down", "--for", "UP_FILE", "UP_TOKEN"]) {
        assertStringIncludes(stdout, word);
      }
      assertEquals(await exists(volume.file), false);
    });
  }
  const unknown = (word: string) =>
    `unknown argument ${JSON.stringify(word)}; see appup --help`;
  for (
    const [args, says] of [
      [["foo"], unknown("foo")],
      [[""], unknown("")],
      [["up", "now"], unknown("now")],
      [["down", ""], unknown("")],
      [["down", "--froo", "10m"], unknown("--froo")],
      [["health", "--reason", "x"], unknown("--reason")],
      [["--version", "x"], unknown("x")],
      [["down", "10m"], 'unexpected argument "10m": --for=10m?'],
      [["down", "1h30m"], 'unexpected argument "1h30m": --for=1h30m?'],
      [["up", "--for", "10m"], "only down takes a duration"],
      [["down", "--for"], "--for needs a value"],
      [["up", "--reason"], "--reason needs a value"],
      [["down", "--for", "25h"], "1s to 24h"],
      [["down", "--for", "30m1h"], "1s to 24h"],
      [["down", "--for", "1h", "--for=1h"], "for is given twice"],
      [["up", "--reason=a", "--reason=b"], "reason is given twice"],
      [["up", "--reason", "\u202egnp.exe"], "bidirectional controls"],
      [["down", "--reason", "x".repeat(201)], "200 characters"],
    ] as const
  ) {
    await t.step(`wrong: ${args.join(" ").slice(0, 30)}`, async () => {
      const { code, stdout, stderr } = await run([...args], env);
      assertEquals([code, stdout], [2, ""]);
      assertMatch(stderr, /^.+\n$/);
      assertStringIncludes(stderr, says);
      assertEquals(await exists(volume.file), false);
    });
  }
  await t.step("what fails is one line and exit code 1", async () => {
    await Deno.mkdir(volume.file);
    for (const args of [["up"], ["down"], ["health"]]) {
      const { code, stdout, stderr } = await run(args, env);
      assertEquals([code, stdout], [1, ""]);
      assertMatch(stderr, /^not a regular file: .*\n$/);
    }
  });
});

patiently(
  "a running server carries on what a command began",
  async () => {
    await using volume = await makeVolume();
    await using app = await start(volume);
    const env = { UP_FILE: volume.file };
    await run(["up"], env);
    assertEquals(await brief(app.ask("/health")), [OK, "app is up"]);
    await run(["down", "--for", "1s", "--reason", "by hand"], env);
    assertEquals((await app.ask("/health")).status, ServiceUnavailable);
    assertMatch((await app.ask("/")).body, /by hand/);
    await app.logs(': appup down, because "by hand"');
    await until("its drain is over", () => exists(volume.file));
    assert(!app.log.join().includes(BY_HAND));
  },
);

// ---------------------------------------------------------------------------
// What is shipped

Deno.test("everything names the version that deno.json has", async () => {
  const root = import.meta.dirname;
  const files = ["README.md", "Dockerfile"].map((name) => `${root}/${name}`);
  const folders = [`${root}/examples`];
  for (const folder of folders) {
    for (const { name, isDirectory } of Deno.readDirSync(folder)) {
      (isDirectory ? folders : files).push(`${folder}/${name}`);
    }
  }
  let images = 0;
  for (const file of files) {
    const text = await Deno.readTextFile(file);
    for (const [image, version] of text.matchAll(/appup:(\d[\w.-]*)/g)) {
      assertEquals(version, manifest.version, `${file}: ${image}`);
      images++;
    }
  }
  assert(images >= 5, `${images} images`);
});

Deno.test("what takes its time", (t) => sideBySide(t, patient));
