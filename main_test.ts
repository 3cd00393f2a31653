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
import manifest from "./deno.json" with { type: "json" };

const {
  OK,
  BadRequest,
  Unauthorized,
  Forbidden,
  NotFound,
  MethodNotAllowed,
  ServiceUnavailable,
} = STATUS_CODE;

// ---------------------------------------------------------------------------
// Running the program

const FLAGS = [...manifest.tasks.flags.command.matchAll(/'(.*?)'|(\S+)/g)]
  .map(([, quoted, plain]) => quoted ?? plain).slice(1); // without the echo
const BINARY = Deno.env.get("APPUP_BIN");
const PROGRAM = BINARY
  ? [await Deno.realPath(BINARY)]
  : [Deno.execPath(), "run", ...FLAGS, `${import.meta.dirname}/main.ts`];

/** What a kubelet sends. */
const PROBE = "GET /health HTTP/1.1\r\nHost: 10.244.0.7:9999\r\n" +
  "User-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n";

type Env = Record<string, string>;

function spawn(args: string[], env: Env, wrapper: string[] = []) {
  const [command, ...rest] = [...wrapper, ...PROGRAM, ...args];
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
async function run(args: string[], env: Env) {
  const { code, stdout, stderr } = await spawn(args, env).output();
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
    touch: () => Deno.writeTextFile(file, "by hand", { append: true }),
    rm: () => Deno.remove(file),
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

type Volume = Awaited<ReturnType<typeof makeVolume>>;

/** A running server; it ends with the test. */
async function start(volume: Volume, env: Env = {}, wrapper?: string[]) {
  const settings = { UP_FILE: volume.file, UP_PORT: "0", ...env };
  const child = spawn([], settings, wrapper);
  const errors = new Response(child.stderr).text();
  const log: string[] = [];
  const started = Promise.withResolvers<number>();
  const logged = (async () => {
    const lines = child.stdout.pipeThrough(new TextDecoderStream());
    let rest = "";
    for await (const chunk of lines) {
      const complete = (rest + chunk).split("\n");
      rest = complete.pop() ?? "";
      for (const line of complete) {
        log.push(line);
        const port = / on \S+:(\d+) for /.exec(line)?.[1];
        if (port) started.resolve(Number(port));
      }
    }
    started.reject(new Error(`it did not start: ${log} ${await errors}`));
  })();
  const port = await started.promise;
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
    /** Waits for a line of the log that has this text. */
    logs: (text: string) =>
      until(
        `the log says ${text}`,
        () => log.some((line) => line.includes(text)),
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
/** The same, without a byte of room left; `before` runs ahead of the program. */
const onFullDisk = (volume: Volume, before = "true") => [
  ...onTmpfs(volume, "size=4k"),
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
const hasIPv6 = await exists("/proc/net/if_inet6");

// ---------------------------------------------------------------------------
// The contract

Deno.test("the toggles flip the file, and health tells", async (t) => {
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
      ["GET", "/up?a=b/health", OK, "app is up", true],
      ["GET", "/health?path=/down", OK, "app is up", true],
      ["GET", "/down?", OK, "app is down", false],
    ] as const
  ) {
    await t.step(`${method} ${path}: ${status} ${body}`, async () => {
      const answer = await app.ask(path, { method });
      assertEquals([answer.status, answer.body], [status, body]);
      assertEquals(await exists(volume.file), isThere);
    });
  }
});

Deno.test("what is no endpoint or no method of it is refused", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const [method, path, status, allow] of [
      ["HEAD", "/up", MethodNotAllowed, "GET, POST"],
      ["HEAD", "/down", MethodNotAllowed, "GET, POST"],
      ["PUT", "/up", MethodNotAllowed, "GET, POST"],
      ["DELETE", "/down", MethodNotAllowed, "GET, POST"],
      ["POST", "/health", MethodNotAllowed, "GET, HEAD"],
      ["OPTIONS", "/health", MethodNotAllowed, "GET, HEAD"],
      ["POST", "/livez", MethodNotAllowed, "GET, HEAD"],
      ["POST", "/metrics", MethodNotAllowed, "GET, HEAD"],
      ["POST", "/", MethodNotAllowed, "GET, HEAD"],
      ["GET", "/health/", NotFound, null],
      ["GET", "//health", NotFound, null],
      ["POST", "/nope", NotFound, null],
    ] as const
  ) {
    await t.step(`${method} ${path}: ${status}`, async () => {
      const answer = await app.ask(path, { method });
      assertEquals(answer.status, status);
      assertEquals(answer.headers.get("allow"), allow);
      assertEquals(await exists(volume.file), false);
      if (status !== NotFound) return;
      for (const endpoint of ["/up", "/down", "/health"]) {
        assertStringIncludes(answer.body, endpoint);
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
  const probe = () => raw(app.port, PROBE);
  assertMatch(await probe(), /^HTTP\/1\.1 503 [^]*\r\n\r\napp is down$/);
  await volume.touch();
  assertMatch(await probe(), /^HTTP\/1\.1 200 [^]*\r\n\r\napp is up$/);
});

Deno.test("a file that is there is left as it is by /up", async () => {
  await using volume = await makeVolume();
  await volume.touch();
  await Deno.utime(volume.file, 1_000_000, 1_000_000);
  await using app = await start(volume);
  assertEquals((await app.ask("/up")).status, OK);
  assertEquals(await Deno.readTextFile(volume.file), "by hand");
  assertEquals((await Deno.stat(volume.file)).mtime, new Date(1e9));
});

Deno.test("a touch and an rm count at once, under load too", async () => {
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

Deno.test("of simultaneous /down, exactly one is 200", async () => {
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

Deno.test("simultaneous /up are all 200 and never truncate", async () => {
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

Deno.test("what else goes wrong is a 503 that says what and where", async (t) => {
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
      says: /^Not a file: stat '.*\/up\.txt'$/,
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
      name: "a link that leads nowhere",
      says: /^A link that leads nowhere: stat '.*\/up\.txt'$/,
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
        for (const path of asks) {
          const { status, body } = await app.ask(path);
          assertEquals(status, ServiceUnavailable, `${path}: ${body}`);
          assertMatch(body, says);
          assert(!body.includes("\n"), body);
          await app.logs(body);
        }
        await mend?.(volume);
        if (!mend) return;
        assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
        assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
      },
    });
  }
});

Deno.test({
  name: "on a disk with no room for a state, plain toggles still work",
  ignore: !canMount,
  fn: async () => {
    await using volume = await makeVolume();
    await using app = await start(volume, {}, onFullDisk(volume));
    assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
    assertEquals((await app.ask("/down?for=1h")).status, ServiceUnavailable);
    assertEquals(await brief(app.ask("/health")), [OK, "app is up"]);
    assertEquals(await brief(app.ask("/down")), [OK, "app is down"]);
    assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
  },
});

// ---------------------------------------------------------------------------
// Configuration

Deno.test("a wrong value ends the start with a line that names it", async (t) => {
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
      ["UP_FILE", `${volume.folder}/nowhere/up.txt`],
      ["UP_INITIAL", ""],
      ["UP_INITIAL", "UP"],
      ["UP_INITIAL", "true"],
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
      UP_TOKEN: "",
    });
    assertEquals(code, 2);
    assertEquals(
      stderr.trimEnd().split("\n").map((line) => line.split("=")[0]),
      ["UP_FILE", "UP_PORT", "UP_INITIAL", "UP_TOKEN"],
    );
  });
});

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

Deno.test({
  name: "the start task serves a file in /tmp, unless told otherwise",
  ignore: BINARY !== undefined,
  fn: async (t) => {
    await using volume = await makeVolume();
    for (
      const [file, env] of [["/tmp/up.txt", {}], [volume.file, {
        UP_FILE: volume.file,
      }]] as const
    ) {
      await t.step(file, async () => {
        const task = new Deno.Command(Deno.execPath(), {
          args: ["task", "start"],
          cwd: import.meta.dirname,
          env: { UP_PORT: "0", ...env },
          stdout: "piped",
          stderr: "null",
        }).spawn();
        const reader = task.stdout.pipeThrough(new TextDecoderStream())
          .getReader();
        assertStringIncludes((await reader.read()).value ?? "", ` for ${file}`);
        task.kill("SIGTERM");
        await reader.cancel();
        await task.status;
      });
    }
  },
});

Deno.test("it may touch /pod and /tmp, the net, its variables, no more", () => {
  const { tasks: { flags: { command } } } = manifest;
  assertEquals(FLAGS.filter((flag) => flag.startsWith("--allow-")).sort(), [
    "--allow-env=UP_FILE,UP_PORT,UP_INITIAL,UP_TOKEN",
    "--allow-net=[::],0.0.0.0",
    "--allow-read=/pod,/tmp",
    "--allow-write=/pod,/tmp",
  ]);
  for (const task of [manifest.tasks.start, manifest.tasks.compile]) {
    assertStringIncludes(task.command, "$(deno task -q flags)");
    assert(!task.command.includes("--allow-"), command);
  }
});

Deno.test("it imports nothing remote", async () => {
  const info = await new Deno.Command(Deno.execPath(), {
    args: ["info", "--json", `${import.meta.dirname}/main.ts`],
  }).output();
  const { modules } = JSON.parse(new TextDecoder().decode(info.stdout));
  assertEquals(
    modules.map(({ specifier }: { specifier: string }) => specifier),
    ["deno.json", "main.ts"].map((name) => new URL(name, import.meta.url).href),
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

Deno.test("what is under way at SIGTERM is answered", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const connections = await connect(app.port, 40);
  const get = async (connection: Deno.Conn, path: string) => {
    await send(connection, `GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`);
    const answer = new Uint8Array(1024);
    const length = await connection.read(answer);
    return new TextDecoder().decode(answer.subarray(0, length ?? 0));
  };
  await Promise.all(connections.map((from) => get(from, "/livez")));
  const answers = connections.map((from, i) =>
    get(from, i % 2 ? "/up" : "/down?for=1h")
  );
  await Promise.race(answers); // most others have arrived, and wait their turn
  app.kill("SIGTERM");
  for (const answer of await Promise.all(answers)) {
    assertMatch(answer, /^HTTP\/1.1 200 OK\r\n/);
  }
  assertEquals((await app.ended).code, 0);
  for (const connection of connections) connection.close();
});

Deno.test("it survives running out of descriptors", async (t) => {
  for (const left of [0, 5]) {
    await t.step(`when all but ${left} clients have gone`, async () => {
      await using volume = await makeVolume();
      const wrapper = ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"];
      await using app = await start(volume, {}, wrapper);
      await volume.touch();
      const isUp = () =>
        raw(app.port, PROBE).then(
          (answer) => answer.includes(" 200 "),
          () => false,
        );
      assertEquals(await isUp(), true);
      const flood: Deno.Conn[] = [];
      const attempts: Promise<boolean>[] = [];
      await until("it runs out", async () => {
        flood.push(...await connect(app.port, 30));
        attempts.push(isUp());
        return !await Promise.race([attempts.at(-1), after(200)]);
      });
      for (const connection of flood.splice(left)) connection.close();
      await until("it answers again", isUp, 1_000);
      await Promise.all(attempts);
      for (const connection of flood) connection.close();
    });
  }
});

Deno.test("a thousand clients that stall do not keep a probe waiting", async () => {
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

Deno.test("the log has a line for each event, and none for a probe", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const events: string[] = [`appup ${manifest.version} on `];
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
  await app.ask("/health");
  await happens("app is up: something other than appup");
  await volume.rm();
  await app.ask("/health");
  await happens("app is down: something other than appup");
  for (let i = 0; i < 30; i++) await app.ask("/health");
  await after(1_500);
  app.kill("SIGTERM");
  await app.ended;
  events.push("SIGTERM: stopping");
  assertEquals(app.log.length, events.length, app.log.join("\n"));
  app.log.forEach((line, i) => {
    const [time, ...rest] = line.split(" ");
    assertEquals(new Date(time).toISOString(), time);
    assert(rest.join(" ").startsWith(events[i]), `${line} is not ${events[i]}`);
  });
  assertMatch(app.log[0], / on \[::\]:\d+ for \S+: app is down$/);
});

// ---------------------------------------------------------------------------
// Drains and reasons

Deno.test("a drain takes down from any state, for a time in its form", async (t) => {
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

Deno.test("a wrong duration or reason is 400 and flips nothing", async (t) => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  for (
    const query of [
      "for=",
      "for=0",
      "for=0s",
      "for=-1",
      "for=1.5h",
      "for=10 m",
      "for=10M",
      "for=10d",
      "for=1h30m",
      "for=25h",
      "for=86401",
      "for=99999999999999999999999",
      `reason=${"x".repeat(201)}`,
      "reason=two%0Alines",
      "reason=%00",
      "reason=%7F",
      "reason=%E2%80%A8",
    ]
  ) {
    await t.step(query.slice(0, 30), async () => {
      for (const isUp of [true, false]) {
        if (isUp) await volume.touch();
        const { status, body } = await app.ask(`/down?${query}`);
        assertEquals(status, BadRequest);
        const form = query.startsWith("for") ? "1s to 24h" : "200 characters";
        assertStringIncludes(body, form);
        assertEquals(await exists(volume.file), isUp);
        if (isUp) await volume.rm();
      }
    });
  }
  await t.step("/up takes no duration", async () => {
    assertEquals((await app.ask("/up?for=10m")).status, BadRequest);
    assertEquals(await exists(volume.file), false);
  });
});

Deno.test("a drain ends by itself, with nobody asking", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up");
  await app.ask("/down?for=1s");
  const asked = Date.now();
  await until("the file is back", () => exists(volume.file), 3_000);
  const late = Date.now() - asked - 1_000;
  assert(late > -50, `${-late} ms early`);
  assertEquals(await brief(app.ask("/health")), [OK, "app is up"]);
  await app.logs("app is up: its drain is over");
});

Deno.test("a drain gives way to the next toggle", async (t) => {
  for (
    const [toggle, isUpLater] of [
      ["/up", true],
      ["/down", false],
      ["/down?for=1h", false],
      ["/down?reason=for%20good", false],
    ] as const
  ) {
    await t.step(toggle, async () => {
      await using volume = await makeVolume();
      await using app = await start(volume);
      await app.ask("/down?for=1s");
      await app.ask(toggle);
      await after(2_200);
      assertEquals(await exists(volume.file), isUpLater);
    });
  }
});

Deno.test("a drain is over for who goes up from a shell", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/down?for=2s");
  await volume.touch();
  await until("it sees", async () => (await volume.state()).up);
  await volume.rm();
  await after(2_500);
  assertEquals(await exists(volume.file), false);
});

Deno.test("a drain that is over but cannot end is tried once a second", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/down?for=1s");
  await Deno.mkdir(volume.file);
  await app.logs("Not a file");
  await after(1_000);
  const ticks = async () => {
    const stat = await Deno.readTextFile(`/proc/${app.pid}/stat`);
    const [user, system] = stat.split(") ")[1].split(" ").slice(11, 13);
    return Number(user) + Number(system); // of 10 ms
  };
  const before = await ticks();
  await after(1_000);
  const spent = await ticks() - before;
  assert(spent <= 5, `it is busy: ${spent} ticks in a second`);
  await Deno.remove(volume.file);
  await until("it ends after all", () => exists(volume.file));
});

Deno.test("a drain's end survives a restart", async (t) => {
  const restart = async (after_: number, check: (volume: Volume) => void) => {
    await using volume = await makeVolume();
    {
      await using app = await start(volume);
      await app.ask("/down?for=2s");
      app.kill("SIGKILL");
      await app.ended;
    }
    await after(after_);
    await using app = await start(volume);
    await check(volume);
    await until("it is back up", () => exists(volume.file));
    await app.logs("app is up: its drain is over");
  };
  await t.step("in the middle", () =>
    restart(0, async ({ file }) => {
      assertEquals(await exists(file), false);
    }));
  await t.step(
    "after what ran out while it was away",
    () =>
      restart(2_100, async ({ file }) => {
        assertEquals(await exists(file), true);
      }),
  );
});

Deno.test("a damaged state file is set aside and never goes up", async (t) => {
  const since = "2026-01-01T00:00:00.000Z";
  for (
    const content of [
      "",
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
    ]
  ) {
    await t.step(JSON.stringify(content), async () => {
      await using volume = await makeVolume();
      await Deno.writeTextFile(volume.stateFile, content);
      await using app = await start(volume, { UP_INITIAL: "up" });
      assertEquals(await exists(volume.file), false);
      const setAside = `${volume.stateFile}.damaged`;
      assertEquals(await Deno.readTextFile(setAside), content);
      await app.logs(`set aside as ${setAside}`);
      assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
      assertEquals((await volume.state()).up, true);
    });
  }
});

Deno.test("a state file that is a directory is set aside, too", async () => {
  await using volume = await makeVolume();
  await Deno.mkdir(volume.stateFile);
  await using app = await start(volume, { UP_INITIAL: "up" });
  assertEquals(await exists(volume.file), false);
  assertEquals(await brief(app.ask("/up")), [OK, "app is up"]);
  assertEquals((await volume.state()).up, true);
  assertEquals(await exists(`${volume.stateFile}.damaged`), true);
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

Deno.test("UP_INITIAL=up starts up on a new volume, and only then", async (t) => {
  const initial = { UP_INITIAL: "up" };
  const restarted = async (volume: Volume, before: () => Promise<unknown>) => {
    await before();
    await using _app = await start(volume, initial);
    return await exists(volume.file);
  };
  await t.step("a new volume", async () => {
    await using volume = await makeVolume();
    assertEquals(await restarted(volume, async () => {}), true);
  });
  for (const env of [{}, { UP_INITIAL: "down" }] as Env[]) {
    await t.step(`a new volume with ${JSON.stringify(env)}`, async () => {
      await using volume = await makeVolume();
      await using _app = await start(volume, env);
      assertEquals([...Deno.readDirSync(volume.folder)], []);
    });
  }
  for (const isUpAtFirst of [true, false]) {
    await t.step(`a crash, up at first: ${isUpAtFirst}`, async (t) => {
      for (
        const [how, takeOut] of Object.entries({
          "/down": (app: { port: number }) => ask(app.port, "/down"),
          "rm": (_app: unknown, { file }: Volume) => Deno.remove(file),
        })
      ) {
        await t.step(`after ${how}`, async () => {
          await using volume = await makeVolume();
          if (isUpAtFirst) await volume.touch();
          const crash = async () => {
            await using app = await start(volume, initial);
            await takeOut(app, volume);
            app.kill("SIGKILL");
            await app.ended;
          };
          assertEquals(await restarted(volume, crash), false);
        });
      }
    });
  }
});

Deno.test({
  name: "a volume too full for a state does not pass for new",
  ignore: !canMount,
  fn: async () => {
    await using volume = await makeVolume();
    const wrapper = onFullDisk(volume, '"$@" up >&2 && "$@" down >&2');
    await using app = await start(volume, { UP_INITIAL: "up" }, wrapper);
    assertEquals(await brief(app.ask("/health")), [
      ServiceUnavailable,
      "app is down",
    ]);
  },
});

Deno.test("a crash in the middle of a flip is settled at the start", async (t) => {
  const since = new Date().toISOString();
  const pending = { since, by: "GET from a test", pending: true };
  const until_ = new Date(Date.now() + 3_600_000).toISOString();
  for (
    const [what, state, wasUp, isUp] of [
      ["down", { up: false, ...pending }, true, false],
      ["down", { up: false, ...pending }, false, false],
      ["a drain", { up: false, until: until_, ...pending }, true, false],
      ["a drain over", { up: false, until: since, ...pending }, true, true],
      ["up", { up: true, ...pending }, false, true],
      ["up", { up: true, ...pending }, true, true],
    ] as const
  ) {
    await t.step(`${what} from ${wasUp ? "up" : "down"}`, async () => {
      await using volume = await makeVolume();
      await Deno.writeTextFile(volume.stateFile, JSON.stringify(state));
      if (wasUp) await volume.touch();
      await using _app = await start(volume);
      await until("settled", async () => {
        const { pending, up } = await volume.state();
        return !pending && up === isUp && await exists(volume.file) === isUp;
      });
    });
  }
});

Deno.test("whoever reads the state file never meets half of it", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up");
  let isFlipping = true;
  const flips = (async () => {
    for (let i = 0; i < 1000; i++) {
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

Deno.test("killed at any point, it never leaves half a state", async () => {
  await using volume = await makeVolume();
  for (let round = 0; round < 15; round++) {
    {
      await using app = await start(volume);
      const asks = Array.from(
        { length: 50 },
        (_, i) => app.ask(i % 2 ? "/up" : "/down?for=1h").catch(() => {}),
      );
      await after(round);
      app.kill("SIGKILL");
      await Promise.all(asks);
    }
    const state = await exists(volume.stateFile) ? await volume.state() : {};
    await using app = await start(volume);
    const isUp = await exists(volume.file);
    assertEquals(isUp, state.up ?? false, JSON.stringify(state));
    assert(!app.log.join().includes("damaged"));
  }
});

// ---------------------------------------------------------------------------
// Who may flip it

Deno.test("with a token, the toggles want it, and a probe does not", async (t) => {
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
  for (
    const [headers, status] of [
      ["", OK],
      ["Sec-Fetch-Site: none", OK],
      ["Sec-Fetch-Site: same-origin", OK],
      ["Sec-Fetch-Site: same-site", Forbidden],
      ["Sec-Fetch-Site: cross-site", Forbidden],
      [`Origin: http://${here}`, OK],
      ["Origin: http://127.0.0.1", Forbidden],
      ["Origin: http://evil.example", Forbidden],
      [`Origin: http://${here}.evil.example`, Forbidden],
      ["Origin: null", Forbidden],
      ["Origin: ", Forbidden],
      [`Origin: http://${here}\r\nSec-Fetch-Site: cross-site`, Forbidden],
    ] as const
  ) {
    await t.step(JSON.stringify(headers), async () => {
      const lines = [`Host: ${here}`, headers, "Connection: close"];
      const head = lines.filter(Boolean).join("\r\n");
      for (const path of ["/up", "/down"]) {
        if (status === OK && path === "/down") await volume.touch();
        const wasThere = await exists(volume.file);
        const answer = await raw(
          app.port,
          `GET ${path} HTTP/1.1\r\n${head}\r\n\r\n`,
        );
        assertStringIncludes(answer, `HTTP/1.1 ${status} `);
        const isThere = await exists(volume.file);
        assertEquals(isThere, status === OK ? path === "/up" : wasThere);
      }
      const health = await raw(
        app.port,
        `GET /livez HTTP/1.1\r\n${head}\r\n\r\n`,
      );
      assertStringIncludes(health, "HTTP/1.1 200 ");
    });
  }
});

// ---------------------------------------------------------------------------
// Watching it

Deno.test("/livez is 200 whatever the state", async () => {
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

Deno.test("/metrics tells the state, what happened, and what it costs", async () => {
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

  await app.ask("/up");
  await app.ask("/up");
  await app.ask("/down");
  await volume.touch();
  await app.ask("/health");
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

Deno.test("/ tells the state and the endpoints, however it came about", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  await app.ask("/up?reason=deployed");
  assertMatch((await app.ask("/")).body, /^app is up\n[^]*deployed/);
  await volume.rm();
  const { body } = await app.ask("/");
  assertMatch(body, /^app is down\n[^]*something other than appup/);
  assert(!body.includes("deployed"));
  for (const path of ["/up", "/down", "/health", "/livez", "/metrics"]) {
    assertMatch(body, new RegExp(`^${path} `, "m"));
  }
});

// ---------------------------------------------------------------------------
// The command line

Deno.test("the command line works on the file, with no server", async (t) => {
  await using volume = await makeVolume();
  const env = { UP_FILE: volume.file, UP_TOKEN: "not-asked-for-here" };
  for (
    const [args, code, stdout, isThere] of [
      ["health", 1, "app is down", false],
      ["down", 0, "app is already down", false],
      ["up", 0, "app is up", true],
      ["up --reason=again", 0, "app is up", true],
      ["health", 0, "app is up", true],
      ["down --for 10m --reason deploy", 0, "app is down for 10m", false],
      ["health", 1, "app is down", false],
      ["down --reason=x --for=90", 0, "app is down for 90s", false],
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
  await t.step("appup --help", async () => {
    const { code, stdout } = await run(["--help"], env);
    assertEquals(code, 0);
    for (const word of ["appup down", "--for", "UP_FILE", "UP_TOKEN"]) {
      assertStringIncludes(stdout, word);
    }
  });
  for (
    const args of [
      ["serve"],
      ["up", "--for", "10m"],
      ["up", "now"],
      ["down", "--for"],
      ["down", "--for", "25h"],
      ["down", "10m"],
      ["down", "--froo", "10m"],
      ["down", "--reason", "x".repeat(201)],
      ["health", "--reason", "x"],
    ]
  ) {
    await t.step(`wrong: ${args.join(" ").slice(0, 30)}`, async () => {
      const { code, stdout, stderr } = await run(args, env);
      assertEquals([code, stdout], [2, ""]);
      assertMatch(stderr, /^.+\n$/);
      assertEquals(await exists(volume.file), false);
    });
  }
  await t.step("what fails is one line and exit code 1", async () => {
    await Deno.mkdir(volume.file);
    for (const args of [["up"], ["down"], ["health"]]) {
      const { code, stdout, stderr } = await run(args, env);
      assertEquals([code, stdout], [1, ""]);
      assertMatch(stderr, /^Not a file: .*\n$/);
    }
  });
});

Deno.test("a running server honours what the command line wrote", async () => {
  await using volume = await makeVolume();
  await using app = await start(volume);
  const env = { UP_FILE: volume.file };
  await run(["up"], env);
  assertEquals(await brief(app.ask("/health")), [OK, "app is up"]);
  await run(["down", "--for", "2s", "--reason", "by hand"], env);
  assertEquals((await app.ask("/health")).status, ServiceUnavailable);
  assertMatch((await app.ask("/")).body, /by hand/);
  await app.logs(': appup down, because "by hand"');
  await until("its drain is over", () => exists(volume.file));
  assert(!app.log.join().includes("something other than appup"));
});
