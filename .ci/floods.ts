/**
 * What strangers may do to an appup in 64 MiB, and what it must withstand.
 *
 *     deno run -A .ci/floods.ts requests|headers|stalled|returning PORT PID
 *
 * The appup serves on this port of the loopback interface, as this process, and
 * wants the token UP_TOKEN.
 */

/** How many requests of each kind come, over 16 connections kept alive. */
const REQUESTS = 25_000;
/** How many connections send long headers. The image allows some more. */
const LONG_SENDERS = 160;
/** In characters. Deno takes 64 KB. */
const LONG_HEADER = "a".repeat(60_000);
/** How many clients stall in the middle of a request. */
const CLIENTS = 4_000;
/** Anonymous memory, in MB. The limit of 64 MiB includes the kernel's share. */
const MOST_AFTER_REQUESTS = 34;
const MOST_AMID_HEADERS = 48;
const MOST_AMID_STALLED = 36;

const [kind, port, pid] = Deno.args;
const token = Deno.env.get("UP_TOKEN");
const after = (ms: number) => new Promise((done) => setTimeout(done, ms));
const connect = () =>
  Deno.connect({ hostname: "127.0.0.1", port: Number(port) });

function check(isRight: boolean, what: string): void {
  console.log(`${isRight ? "ok" : "FAILED"}: ${what}`);
  if (!isRight) Deno.exitCode = 1;
}

/** Anonymous memory of the process, in MB. */
function memory(): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1]) * 1024 / 1e6;
}

function checkMemory(megabytes: number, most: number): void {
  const seen = `${megabytes.toFixed(1)} MB of anonymous memory`;
  check(megabytes <= most, `${seen}, at most ${most}`);
}

/** Sends a request again and again, on one connection. */
async function send(
  request: string,
  goesOn: () => boolean,
  receive: (answer: string) => void,
): Promise<void> {
  using connection = await connect();
  const bytes = new TextEncoder().encode(request);
  const buffer = new Uint8Array(16_384);
  while (goesOn()) {
    for (let sent = 0; sent < bytes.length;) {
      sent += await connection.write(bytes.subarray(sent));
    }
    const size = await connection.read(buffer);
    if (size === null) return;
    receive(new TextDecoder().decode(buffer.subarray(0, size)));
  }
}

async function requests(): Promise<void> {
  const bearer = `Authorization: Bearer ${token}\r\n`;
  const kinds = [
    [401, "/up", "Host: a\r\n"],
    [400, "/down?for=x", `Host: a\r\n${bearer}`],
    [400, "/health", "Host: a/down?x=\r\n"],
    [403, "/up", `Host: a\r\nOrigin: http://b\r\n${bearer}`],
    [404, "/nothing-here", "Host: a\r\n"],
  ];
  for (const [status, path, headers] of kinds) {
    const request = `GET ${path} HTTP/1.1\r\n${headers}\r\n`;
    let [left, answered] = [REQUESTS, 0];
    const receive = (answer: string) => {
      if (answer.startsWith(`HTTP/1.1 ${status} `)) answered++;
    };
    const sender = () => send(request, () => left-- > 0, receive);
    await Promise.all(Array.from({ length: 16 }, sender));
    check(answered === REQUESTS, `${answered} times ${status} for ${path}`);
    checkMemory(memory(), MOST_AFTER_REQUESTS);
  }
}

async function headers(): Promise<void> {
  const kinds = [
    ["/health", `User-Agent: ${LONG_HEADER}`],
    [`/health?${LONG_HEADER}`, "Host: a"],
    ["/", `User-Agent: ${LONG_HEADER}`],
    ["/up", `Authorization: Bearer ${LONG_HEADER}`],
  ];
  for (const [path, header] of kinds) {
    const request = `GET ${path} HTTP/1.1\r\n${header}\r\n\r\n`;
    const end = Date.now() + 4_000;
    const goesOn = () => Date.now() < end;
    let [answers, most] = [0, 0];
    const sender = async () => {
      while (goesOn()) {
        // Where the connection is reset, connect again.
        await send(request, goesOn, () => answers++).catch(() => {});
      }
    };
    const senders = Promise.all(Array.from({ length: LONG_SENDERS }, sender));
    for (; goesOn(); await after(50)) most = Math.max(most, memory());
    await senders;
    const what = `${path.slice(0, 9)} ${header.slice(0, 14)}`;
    check(answers > LONG_SENDERS, `${answers} answers to ${what}`);
    checkMemory(most, MOST_AMID_HEADERS);
  }
}

/** Sends half a request, and waits until the connection is closed. */
async function stall(): Promise<void> {
  try {
    using connection = await connect();
    const half = "GET /health HTTP/1.1\r\nHost: a\r\n";
    await connection.write(new TextEncoder().encode(half));
    await connection.read(new Uint8Array(1024));
  } catch { /* refused or reset */ }
}

/** Whether a new connection gets its answer within a second, as a kubelet asks. */
async function probe(): Promise<boolean> {
  const request =
    "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
  let [left, isAnswered] = [1, false];
  const receive = (answer: string) => {
    isAnswered = /^HTTP\/1.1 (200|503) /.test(answer);
  };
  const asked = send(request, () => left-- > 0, receive);
  await Promise.race([asked, after(1_000)]).catch(() => {});
  return isAnswered;
}

async function amidClients(seconds: number): Promise<number> {
  const descriptors = () => [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  const before = descriptors();
  // In a process of their own, they don't slow the probes.
  const args = ["run", "-A", import.meta.filename!, `clients-${kind}`, port];
  const clients = new Deno.Command(Deno.execPath(), { args }).spawn();
  const probes: Promise<boolean>[] = [];
  let most = 0;
  for (let i = 0; i < seconds; i++) {
    await after(1_000);
    probes.push(probe());
    most = Math.max(most, memory());
  }
  const answered = (await Promise.all(probes)).filter(Boolean).length;
  clients.kill("SIGKILL");
  console.log(`measured: ${answered} of ${seconds} probes answered`);
  checkMemory(most, MOST_AMID_STALLED);
  await after(8_000); // the trouble is over after 5 s
  const more = descriptors() - before;
  check(more <= 2, `${more} descriptors more than before`);
  return answered;
}

const floods: Record<string, () => Promise<unknown>> = {
  requests,
  headers,
  stalled: async () => check(await amidClients(10) === 10, "all probes"),
  // How many get through to a server that is asked again at once depends on the
  // machine: COST.md has what was measured.
  returning: () => amidClients(20),
  "clients-stalled": () => Promise.all(Array.from({ length: CLIENTS }, stall)),
  "clients-returning": () =>
    Promise.all(Array.from({ length: CLIENTS }, async () => {
      while (true) await stall();
    })),
};

await floods[kind]();
