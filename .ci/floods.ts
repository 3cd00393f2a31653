/**
 * What strangers may do to a running appup, and what it must withstand.
 *
 *     deno run -A .ci/floods.ts requests|headers|stalled|returning COMMAND...
 *
 * COMMAND starts appup with this process's environment, and its output is
 * appup's log. Everything stays on the loopback interface.
 */
const TOKEN = "a-stranger-does-not-have-this";
/** How many requests of each kind come, over 16 connections kept alive. */
const REQUESTS = 25_000;
/** In characters. Deno takes 64 KB. */
const LONG_HEADER = 60_000;
/** How many connections send long headers. The image allows some more. */
const LONG_SENDERS = 160;
/** How many clients stall in the middle of a request. */
const CLIENTS = 4_000;
/** Anonymous memory, in MB, of a process that may use 64 MiB with the kernel's. */
const MOST_AFTER_REQUESTS = 34;
const MOST_AMID_HEADERS = 48;
const MOST_AMID_STALLED = 36;

const encode = (text: string) => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const after = (ms: number) => new Promise((done) => setTimeout(done, ms));
const connect = (port: number) => Deno.connect({ hostname: "127.0.0.1", port });

let failures = 0;
function check(isRight: boolean, what: string): void {
  console.log(`${isRight ? "ok" : "FAILED"}: ${what}`);
  if (!isRight) failures++;
}

/** appup, as it is seen from outside. */
async function start([command, ...args]: string[]) {
  const env = { UP_PORT: "0", UP_TOKEN: TOKEN };
  const options = { args, env, stdin: "null", stdout: "piped" } as const;
  const child = new Deno.Command(command, options).spawn();
  let code: number | undefined;
  child.status.then((status) => code = status.code);
  const log: string[] = [];
  const started = Promise.withResolvers<number>();
  (async () => {
    for await (
      const text of child.stdout.pipeThrough(new TextDecoderStream())
    ) {
      console.log(text.trimEnd().replace(/^/gm, "  "));
      log.push(...text.trimEnd().split("\n"));
      const port = / on \S+:(\d+) for /.exec(text)?.[1];
      if (port) started.resolve(Number(port));
    }
    started.reject(new Error("it did not start"));
  })();
  const port = await started.promise;
  // In a container, it is not the process that was started.
  const ss = new Deno.Command("ss", { args: ["-Hltp", `sport = :${port}`] });
  const pid = Number(/pid=(\d+)/.exec(decode((await ss.output()).stdout))?.[1]);
  return {
    port,
    log,
    isAlive: () => code === undefined,
    memory: () => {
      if (code !== undefined) return Infinity;
      const status = Deno.readTextFileSync(`/proc/${pid}/status`);
      return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1]) * 1024 / 1e6;
    },
    descriptors: () => [...Deno.readDirSync(`/proc/${pid}/fd`)].length,
    stop: async () => {
      await after(500); // for the kernel, to end what it will
      check(code === undefined, `never killed (exit code ${code})`);
      if (code !== undefined) return;
      Deno.kill(pid, "SIGTERM");
      check((await child.status).code === 0, "SIGTERM ends it with 0");
    },
  };
}

type Appup = Awaited<ReturnType<typeof start>>;

function checkMemory(megabytes: number, most: number): void {
  const what = `${
    megabytes.toFixed(1)
  } MB of anonymous memory, at most ${most}`;
  check(megabytes <= most, what);
}

/** Sends a request again and again, on one connection. */
async function send(
  port: number,
  request: string,
  goesOn: () => boolean,
  receive: (answer: string) => void,
): Promise<void> {
  using connection = await connect(port);
  const bytes = encode(request);
  const buffer = new Uint8Array(16_384);
  while (goesOn()) {
    for (let sent = 0; sent < bytes.length;) {
      sent += await connection.write(bytes.subarray(sent));
    }
    const size = await connection.read(buffer);
    if (size === null) return;
    receive(decode(buffer.subarray(0, size)));
  }
}

async function requests(appup: Appup): Promise<void> {
  const bearer = `Authorization: Bearer ${TOKEN}\r\n`;
  for (
    const [status, path, headers] of [
      [401, "/up", "Host: a\r\n"],
      [400, "/down?for=x", `Host: a\r\n${bearer}`],
      [400, "/health", "Host: a/down?x=\r\n"],
      [403, "/up", `Host: a\r\nOrigin: http://b\r\n${bearer}`],
      [404, "/nothing-here", "Host: a\r\n"],
    ]
  ) {
    const request = `GET ${path} HTTP/1.1\r\n${headers}\r\n`;
    let [left, count] = [REQUESTS, 0];
    const receive = (answer: string) => {
      if (answer.startsWith(`HTTP/1.1 ${status} `)) count++;
    };
    await Promise.all(
      Array.from(
        { length: 16 },
        () => send(appup.port, request, () => left-- > 0, receive),
      ),
    );
    check(count === REQUESTS, `${count} times ${status} for ${path}`);
    checkMemory(appup.memory(), MOST_AFTER_REQUESTS);
  }
}

async function headers(appup: Appup): Promise<void> {
  const long = "a".repeat(LONG_HEADER);
  for (
    const [path, header] of [
      ["/health", `User-Agent: ${long}`],
      [`/health?${long}`, "Host: a"],
      ["/", `User-Agent: ${long}`],
      ["/up", `Authorization: Bearer ${long}`],
    ]
  ) {
    const request = `GET ${path} HTTP/1.1\r\n${header}\r\n\r\n`;
    const end = Date.now() + 4_000;
    const goesOn = () => Date.now() < end && appup.isAlive();
    let [answers, most] = [0, 0];
    const watch = async () => {
      for (; goesOn(); await after(50)) most = Math.max(most, appup.memory());
    };
    const sender = async () => {
      while (goesOn()) {
        await send(appup.port, request, goesOn, () => answers++)
          .catch(() => {}); // reset: connect again
      }
    };
    await Promise.all([
      watch(),
      ...Array.from({ length: LONG_SENDERS }, sender),
    ]);
    const what = `${path.slice(0, 9)} ${header.slice(0, 14)}`;
    check(answers > LONG_SENDERS, `${answers} answers to ${what}`);
    checkMemory(most, MOST_AMID_HEADERS);
  }
}

/** Clients that send half a request and wait, once or again and again. */
async function stall(port: number, isReturning: boolean): Promise<void> {
  const one = async () => {
    try {
      using connection = await connect(port);
      await connection.write(encode("GET /health HTTP/1.1\r\nHost: a\r\n"));
      await connection.read(new Uint8Array(1024)); // until it is closed
    } catch { /* refused or reset */ }
  };
  await Promise.all(
    Array.from({ length: CLIENTS }, async () => {
      do await one(); while (isReturning);
    }),
  );
}

/** Whether a new connection gets its answer within a second, as a kubelet asks. */
async function probe(port: number): Promise<boolean> {
  const request =
    "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  let [left, isAnswered] = [1, false];
  const receive = (answer: string) => {
    isAnswered = /^HTTP\/1.1 (200|503) /.test(answer);
  };
  const asked = send(port, request, () => left-- > 0, receive);
  await Promise.race([asked, after(1_000)]).catch(() => {});
  return isAnswered;
}

async function amidClients(appup: Appup, isReturning: boolean): Promise<void> {
  const before = { lines: appup.log.length, descriptors: appup.descriptors() };
  // In a thread of their own, they don't slow the probes.
  const clients = new Worker(import.meta.url, { type: "module" });
  clients.postMessage({ port: appup.port, isReturning });
  const probes: Promise<boolean>[] = [];
  let most = 0;
  for (let i = 0; i < (isReturning ? 20 : 10); i++) {
    await after(1_000);
    probes.push(probe(appup.port));
    most = Math.max(most, appup.memory());
  }
  const good = (await Promise.all(probes)).filter(Boolean).length;
  clients.terminate();
  const what = `${good} of ${probes.length} probes answered`;
  // How many get through to a server that is asked again at once depends on the
  // machine: COST.md has what was measured.
  if (isReturning) console.log(`measured: ${what}`);
  else check(good === probes.length, what);
  checkMemory(most, MOST_AMID_STALLED);
  await after(8_000); // the trouble is over after 5 s
  const lines = appup.log.length - before.lines;
  check(lines === 2, `${lines} lines in the log: it began, and it is over`);
  const more = appup.descriptors() - before.descriptors;
  check(more <= 2, `${more} descriptors more than before`);
}

const floods: Record<string, (appup: Appup) => Promise<void>> = {
  requests,
  headers,
  stalled: (appup) => amidClients(appup, false),
  returning: (appup) => amidClients(appup, true),
};

if ("WorkerGlobalScope" in globalThis) {
  addEventListener("message", (event) => {
    const { port, isReturning } = (event as MessageEvent).data;
    stall(port, isReturning);
  });
} else {
  const [kind, ...command] = Deno.args;
  const appup = await start(command);
  await floods[kind](appup);
  await appup.stop();
  Deno.exit(failures > 0 ? 1 : 0);
}
