/**
 * appup stands in for the health check that an application in Kubernetes does
 * not have: a switch in front of the pod's readiness.
 *
 * The switch is a file, `UP_FILE`. There, the pod is up; gone, it is down. Every
 * answer comes from a look at it that began after the question arrived, so a
 * `touch` or an `rm` from any container of the pod counts at once.
 *
 * Beside it stands a small state file, `UP_FILE.state`, with what a file's
 * presence cannot tell: since when, by whom, why, and until when the pod is
 * down. It decides nothing but when a drain ends, and how a flip does that a
 * crash cut short.
 *
 * As a program (`appup --help`), it serves, or flips the switch from the command
 * line; as a module, it exports its parts.
 *
 * @module
 */
import manifest from "./deno.json" with { type: "json" };

const VERSION: string = manifest.version;

/** What the process exits with. */
export const EXIT = {
  /** It did what was asked. */
  OK: 0,
  /** It could not (port in use, file system), or `appup health` found down. */
  FAILED: 1,
  /** The command line or the configuration is wrong; nothing was touched. */
  USAGE: 2,
} as const;

/** A mistake of the caller's: 400 over HTTP, exit code 2 on the command line. */
export class UsageError extends Error {}

// ---------------------------------------------------------------------------
// Configuration

/** What the environment decides. */
export interface Config {
  /** Absolute path of the file whose presence means up. */
  file: string;
  /** TCP port; 0 takes a free one. */
  port: number;
  /** Whether a volume that no appup has seen before starts up. */
  startUp: boolean;
  /** What the toggles ask for as a bearer token, if anything. */
  token?: string;
}

/**
 * Reads the configuration from the `UP_*` variables.
 *
 * @throws {UsageError} with a line for each wrong value, all at once: the
 * variable, its value, and the way out. A token is never shown.
 */
export function configure(env: (name: string) => string | undefined): Config {
  const wrong: string[] = [];
  const read = (
    name: string,
    fallback: string,
    isRight: (value: string) => boolean,
    wayOut: string,
    show = JSON.stringify,
  ) => {
    const value = env(name) ?? fallback;
    if (!isRight(value)) wrong.push(`${name}=${show(value)}: ${wayOut}`);
    return value;
  };

  const config = {
    file: read(
      "UP_FILE",
      "/pod/up.txt",
      isUsableFile,
      "must be an absolute path in an existing folder below /pod or /tmp, all " +
        "that appup may touch; mount the pod's shared volume at /pod in this " +
        "container, whatever its path is in the others",
    ),
    port: Number(read(
      "UP_PORT",
      "9999",
      (value) => /^\d{1,5}$/.test(value) && Number(value) <= 65535,
      "must be a whole number from 0 to 65535, 0 for a free port; a Service " +
        'named "up" sets it in every pod, unless the container sets it, too',
    )),
    startUp: read(
      "UP_INITIAL",
      "down",
      (value) => value === "up" || value === "down",
      'must be "up" or "down", or not set at all',
    ) === "up",
    // Visible ASCII is what a header can carry; a Secret made with `echo` ends
    // in a newline, which no client could ever send.
    token: env("UP_TOKEN") === undefined ? undefined : read(
      "UP_TOKEN",
      "",
      (value) => /^[\x21-\x7e]+$/.test(value),
      "must be one or more visible ASCII characters, without spaces or a " +
        "newline; to leave the toggles open, do not set it at all",
      () => "(not shown)",
    ),
  };
  if (wrong.length > 0) throw new UsageError(wrong.join("\n"));
  return config;
}

const folderOf = (path: string) => path.slice(0, path.lastIndexOf("/")) || "/";

function isUsableFile(path: string): boolean {
  if (!path.startsWith("/") || path.endsWith("/")) return false;
  const folder = folderOf(path);
  const may = (name: "read" | "write") =>
    Deno.permissions.querySync({ name, path: folder }).state === "granted";
  try {
    return may("read") && may("write") && Deno.statSync(folder).isDirectory;
  } catch {
    return false;
  }
}

// ---------------------------------------------------------------------------
// What may be asked of a flip, over HTTP and on the command line alike

/** What comes with a request to go up or down. */
export interface Order {
  /** How long to stay down, in ms, and as the caller wrote it. */
  drain?: { ms: number; text: string };
  /** Why, for whoever looks next. */
  reason?: string;
}

const SECONDS_PER = { "": 1, s: 1, m: 60, h: 3600 };
const LONGEST_DRAIN_S = 24 * SECONDS_PER.h;
const LONGEST_REASON = 200;

/**
 * Reads `for` and `reason` as they came.
 *
 * @throws {UsageError} that says which form is accepted.
 */
export function parseOrder(
  up: boolean,
  duration?: string | null,
  reason?: string | null,
): Order {
  return {
    drain: typeof duration === "string" ? parseDrain(up, duration) : undefined,
    reason: reason ? parseReason(reason) : undefined,
  };
}

function parseDrain(up: boolean, text: string): Order["drain"] {
  if (up) throw new UsageError("only down takes a duration");
  const [, digits, unit] = /^(\d+)([smh]?)$/.exec(text) ?? [];
  const seconds = Number(digits) * SECONDS_PER[unit as "" | "s" | "m" | "h"];
  if (!(seconds >= 1 && seconds <= LONGEST_DRAIN_S)) {
    throw new UsageError(
      "a duration is a whole number of seconds, or one with the unit s, m or " +
        "h, from 1s to 24h: 90, 90s, 10m, 2h",
    );
  }
  return { ms: seconds * 1000, text: unit ? text : `${text}s` };
}

function parseReason(reason: string): string {
  // Line and paragraph separators would break the log's one line per event.
  if (
    [...reason].length > LONGEST_REASON || /[\p{Cc}\p{Zl}\p{Zp}]/u.test(reason)
  ) {
    throw new UsageError(
      `a reason is at most ${LONGEST_REASON} characters, without control ` +
        "characters or line breaks",
    );
  }
  return reason;
}

/** What whoever flipped the switch is told, over HTTP and in a shell. */
function outcome(up: boolean, changed: boolean, { drain }: Order): string {
  if (up) return "app is up";
  if (drain) return `app is down for ${drain.text}`;
  return changed ? "app is down" : "app is already down";
}

// ---------------------------------------------------------------------------
// The switch over the file

/** What the state file holds, as JSON. Times are ISO 8601. */
export interface State {
  /** What was asked for. */
  up: boolean;
  /** Since when it is so. */
  since: string;
  /** Who made it so: a request and its address, the command line, … */
  by: string;
  /** Why, if anybody said. */
  reason?: string;
  /** When a drain ends and the app goes up by itself. */
  until?: string;
  /**
   * Written before the file is flipped, gone afterwards: a settlement that finds
   * it knows that a crash came between.
   */
  pending?: true;
}

/**
 * Reads a state file's text.
 *
 * @throws {SyntaxError} when it is not a state.
 */
export function parseState(text: string): State {
  const state = JSON.parse(text);
  const isText = (value: unknown) => typeof value === "string";
  const isTime = (value: unknown) =>
    isText(value) && !isNaN(Date.parse(value as string));
  const isState = typeof state?.up === "boolean" && isTime(state.since) &&
    isText(state.by) &&
    (state.reason === undefined || isText(state.reason)) &&
    (state.until === undefined || (isTime(state.until) && !state.up));
  if (!isState) throw new SyntaxError("not a state");
  return state;
}

/** Takes note of an event, in one line. */
export type Log = (event: string) => void;

const now = () => new Date().toISOString();
const messageOf = (error: unknown) =>
  error instanceof Error ? error.message : String(error);

/** The switch: a file that is there or not, and what is known about it. */
export interface Switch {
  /**
   * Whether the file is there, by a look that begins after the call.
   *
   * @throws when that can't be told: the volume gone, not a file, no permission.
   */
  isUp(): Promise<boolean>;
  /**
   * Creates or removes the file, and tells whether it changed anything. Of any
   * number of simultaneous calls, one does.
   *
   * @throws when the file can't be flipped or a drain's end not be kept.
   */
  flip(up: boolean, by: string, order?: Order): Promise<boolean>;
  /**
   * Settles, and goes up where `startUp` says so: on a new volume only, for a
   * crash must not put a pod back that an operator took out.
   */
  begin(startUp: boolean): Promise<void>;
  /**
   * Brings file and state file to agree: finishes what a crash cut short, ends
   * a drain that is over, takes note of what others did. Never throws: what
   * hinders it is reported.
   */
  settle(): Promise<void>;
  /** Logs an error, once until {@linkcode settle} succeeds again. */
  report(error: unknown): void;
  /** What was known last; nothing before {@linkcode begin}. */
  known(): State | undefined;
  /** How often it went up and down while this process watched. */
  transitions: { up: number; down: number };
}

/** Makes the switch over `file`; `log` gets a line for each event. */
export function makeSwitch(file: string, log: Log): Switch {
  const folder = folderOf(file);
  const stateFile = `${file}.state`;
  const setAside = `${stateFile}.damaged`;
  const transitions = { up: 0, down: 0 };
  let known: State | undefined;

  // Synchronous: 3 µs, where the way to a thread and back takes 80.
  function look(): boolean {
    try {
      if (Deno.statSync(file).isFile) return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      Deno.statSync(folder); // no file is down, but no volume is an error
      return false;
    }
    throw new Error(`Not a file: stat '${file}'`);
  }

  // Questions that arrive together share one look, made after the last of them.
  let shared: Promise<boolean> | undefined;
  const isUp = () =>
    shared ??= Promise.resolve().then(() => {
      shared = undefined;
      return look();
    });

  /** Whether this call created it. */
  async function create(): Promise<boolean> {
    try {
      await Deno.writeFile(file, new Uint8Array(), { createNew: true });
      return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      if (look()) return false;
      throw new Error(`A link that leads nowhere: stat '${file}'`);
    }
  }

  /** Whether this call removed it. */
  async function remove(path: string): Promise<boolean> {
    try {
      await Deno.remove(path);
      return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      return false;
    }
  }

  /** Written whole or not at all: whoever reads it never meets half a state. */
  async function write(state: State): Promise<void> {
    const draft = `${stateFile}.${crypto.randomUUID()}`;
    try {
      await Deno.writeTextFile(draft, `${JSON.stringify(state)}\n`);
      await Deno.rename(draft, stateFile);
    } catch (error) {
      await remove(draft).catch(() => {});
      throw new Error(messageOf(error).replaceAll(draft, stateFile));
    }
  }

  async function recall(): Promise<State | undefined> {
    try {
      return parseState(await Deno.readTextFile(stateFile));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      if (!isDamage(error)) throw error;
      await Deno.rename(stateFile, setAside);
      const state = { up: look(), since: now(), by: "found like this" };
      await keep(state);
      log(`${stateFile} is damaged, set aside as ${setAside}`);
      return state;
    }
  }

  /** Keeps `state` if it can, or else nothing: an older one would be wrong. */
  async function keep(state: State): Promise<void> {
    try {
      await write(state);
    } catch (error) {
      log(`since when, by whom and why is not kept: ${messageOf(error)}`);
      await remove(stateFile);
      // An empty file fits on a full disk: the volume must not pass for new.
      const nothing = new Uint8Array();
      await Deno.writeFile(setAside, nothing, { append: true }).catch(() => {});
    }
  }

  function learn(state: State): void {
    if (known && JSON.stringify(known) !== JSON.stringify(state)) {
      if (known.up !== state.up) transitions[state.up ? "up" : "down"]++;
      log(describe(state));
    }
    known = state;
  }

  async function carryOut({ pending: _, ...state }: State): Promise<boolean> {
    const changed = state.up ? await create() : await remove(file);
    await keep(state);
    learn(state);
    return changed;
  }

  async function flip(up: boolean, by: string, { drain, reason }: Order = {}) {
    const wasUp = look();
    const before = await recall();
    const isSame = wasUp === up && before?.up === up && !before.pending;
    if (isSame && !drain && !reason && !before.until) return false;
    const state: State = {
      up,
      since: isSame ? before.since : now(),
      by,
      reason: reason ?? (isSame ? before.reason : undefined),
      until: drain && new Date(Date.now() + drain.ms).toISOString(),
      pending: true,
    };
    try {
      await write(state);
    } catch (error) {
      // Without its end on disk a drain could last for ever. A plain flip has to
      // work on a full disk, too, but then no older drain may outlive it.
      if (drain) throw error;
      if (!up) await remove(stateFile);
    }
    try {
      return await carryOut(state);
    } catch (error) {
      await (before ? write(before) : remove(stateFile)).catch(() => {});
      throw error;
    }
  }

  async function begin(startUp: boolean): Promise<void> {
    const isNew = !await isThere(stateFile) && !await isThere(setAside);
    await settle();
    if (startUp && isNew) await flip(true, "UP_INITIAL");
  }

  async function settle(): Promise<void> {
    const found = await recall();
    known ??= found;
    if (found?.pending) {
      await carryOut(found);
      return settle();
    }
    const up = look();
    const wasUp = (found ?? known)?.up ?? up;
    if (wasUp !== up) {
      // Another appup writes its state before it touches the file: with a new
      // state there, the change was its doing, else somebody else's.
      const latest = await recall();
      if (JSON.stringify(latest) !== JSON.stringify(found)) return settle();
      const state = { up, since: now(), by: "something other than appup" };
      await keep(state);
      learn(state);
    } else if (found) {
      learn(found);
      const { until } = found;
      if (until && Date.parse(until) <= Date.now()) {
        await flip(true, "its drain is over");
      }
    } else {
      known = { up, since: now(), by: "found like this", ...known };
      delete known.until;
    }
  }

  // Flips and settlements take turns. Looks don't: they only read.
  let turns: Promise<unknown> = Promise.resolve();
  function inTurn<T>(job: () => Promise<T>): Promise<T> {
    const turn = turns.then(job);
    turns = turn.catch(() => {});
    return turn;
  }

  const reported = new Set<string>();
  function report(error: unknown): void {
    const message = messageOf(error);
    if (!reported.has(message)) log(message);
    reported.add(message);
  }

  const settleInTurn = (how = settle) =>
    inTurn(how).then(() => reported.clear(), report);
  let settling: Promise<void> | undefined;

  return {
    isUp,
    flip: (up, by, order) => inTurn(() => flip(up, by, order)),
    begin: (startUp) => settleInTurn(() => begin(startUp)),
    settle: () =>
      settling ??= settleInTurn().finally(() => settling = undefined),
    report,
    known: () => known,
    transitions,
  };
}

async function isThere(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    return !(error instanceof Deno.errors.NotFound);
  }
}

/** Whether what was read, or could not be, will never be a state again. */
function isDamage(error: unknown): boolean {
  return error instanceof SyntaxError ||
    error instanceof Deno.errors.IsADirectory ||
    error instanceof Deno.errors.PermissionDenied;
}

/** A state in one line: for the log. */
function describe({ up, by, reason, until }: State): string {
  return [
    `app is ${up ? "up" : "down"}`,
    until && ` until ${until}`,
    `: ${by}`,
    reason && `, because ${JSON.stringify(reason)}`,
  ].filter(Boolean).join("");
}

// ---------------------------------------------------------------------------
// The handler

type Info = Deno.ServeHandlerInfo<Deno.NetAddr>;

interface Route {
  /** For the page and the 404, in a few words. */
  does: string;
  methods: readonly string[];
  answer(request: Request, info: Info): Response | Promise<Response>;
}

/** Makes the handler that answers for the switch; logs toggles that fail. */
export function makeHandler(
  appup: Switch,
  token: string | undefined,
  log: Log,
): Deno.ServeHandler<Deno.NetAddr> {
  const reads = ["GET", "HEAD"];
  const toggles = ["GET", "POST"]; // no HEAD: it is safe by RFC 9110, 9.2.1

  const routes: Record<string, Route> = {
    "/health": {
      does: "200 when up, 503 when down: for a readinessProbe",
      methods: reads,
      answer: health,
    },
    "/up": {
      does: "go up; ?reason=TEXT",
      methods: toggles,
      answer: (request, info) => toggle(true, request, info),
    },
    "/down": {
      does: "go down; ?for=10m to come back up by itself; ?reason=TEXT",
      methods: toggles,
      answer: (request, info) => toggle(false, request, info),
    },
    "/livez": {
      does: "200 while appup serves: for a livenessProbe of its own",
      methods: reads,
      answer: () => respond(200, "ok"),
    },
    "/metrics": { does: "for Prometheus", methods: reads, answer: metrics },
    "/": {
      does: "the state, since when, by whom and why",
      methods: reads,
      answer: page,
    },
  };
  const endpoints = Object.entries(routes)
    .map(([path, { does }]) => `${path.padEnd(10)}${does}\n`).join("");

  const routeAt = new Map(Object.entries(routes));
  const requests = new Map<string, number>(); // by "PATH CODE"

  async function health(): Promise<Response> {
    const up = await appup.isUp();
    if (up !== appup.known()?.up) appup.settle();
    return up ? respond(200, "app is up") : respond(503, "app is down");
  }

  async function toggle(up: boolean, request: Request, { remoteAddr }: Info) {
    if (isFromAnotherSite(request)) {
      return respond(403, "a page of another site may not flip the switch");
    }
    if (token && !await bears(token, request)) {
      const challenge = { "www-authenticate": "Bearer" };
      return respond(401, "this wants Authorization: Bearer TOKEN", challenge);
    }
    const address = remoteAddr.hostname.replace(/^::ffff:/, "");
    const by = `${request.method} ${up ? "/up" : "/down"} from ${address}`;
    try {
      const query = new URL(request.url).searchParams;
      const order = parseOrder(up, query.get("for"), query.get("reason"));
      const changed = await appup.flip(up, by, order);
      const wasDown = !up && !changed && !order.drain;
      return respond(wasDown ? 503 : 200, outcome(up, changed, order));
    } catch (error) {
      if (error instanceof UsageError) return respond(400, error.message);
      log(`${by} failed: ${messageOf(error)}`);
      return respond(503, messageOf(error));
    }
  }

  async function page(): Promise<Response> {
    await appup.settle();
    const up = await appup.isUp();
    const state = appup.known();
    const lines = [
      `app is ${up ? "up" : "down"}`,
      ...(state?.up === up
        ? [
          `since  ${state.since}`,
          `by     ${state.by}`,
          state.reason && `why    ${state.reason}`,
          state.until && `until  ${state.until}`,
        ]
        : []),
      "",
      endpoints,
    ];
    return respond(200, lines.filter((line) => line !== undefined).join("\n"));
  }

  async function metrics(): Promise<Response> {
    await appup.settle();
    const up = await appup.isUp().catch(() => false); // as a probe takes it
    const until = appup.known()?.until;
    const body = [
      gauge("appup_up", "Whether the app is up.", +up),
      family("counter", "appup_transitions_total", "Turns up and down.", [
        [{ to: "up" }, appup.transitions.up],
        [{ to: "down" }, appup.transitions.down],
      ]),
      family(
        "counter",
        "appup_requests_total",
        "Requests to known paths.",
        [...requests].map(([key, count]) => {
          const [path, code] = key.split(" ");
          return [{ path, code }, count];
        }),
      ),
      until && gauge(
        "appup_drain_ends_timestamp_seconds",
        "When the app goes back up by itself.",
        Date.parse(until) / 1000,
      ),
      family("gauge", "appup_build_info", "The version, as a label.", [
        [{ version: VERSION }, 1],
      ]),
      gauge(
        "process_start_time_seconds",
        "When appup started.",
        performance.timeOrigin / 1000,
      ),
      gauge(
        "process_resident_memory_bytes",
        "Memory that appup occupies.",
        Deno.memoryUsage().rss,
      ),
    ].filter(Boolean).join("");
    const type = "text/plain; version=0.0.4; charset=utf-8";
    return respond(200, body, { "content-type": type });
  }

  return async (request, info) => {
    const path = pathOf(request.url);
    const route = routeAt.get(path);
    if (!route) {
      return respond(404, `no such endpoint; there are\n${endpoints}`);
    }
    let response: Response;
    try {
      response = route.methods.includes(request.method)
        ? await route.answer(request, info)
        : respond(405, `${request.method} is not allowed here`, {
          allow: route.methods.join(", "),
        });
    } catch (error) {
      appup.report(error);
      response = respond(503, messageOf(error));
    }
    const key = `${path} ${response.status}`;
    requests.set(key, (requests.get(key) ?? 0) + 1);
    return response;
  };
}

const HEADERS = {
  "content-type": "text/plain; charset=utf-8",
  "cache-control": "no-store",
};

function respond(
  status: number,
  body: string,
  more?: Record<string, string>,
): Response {
  const headers = more ? { ...HEADERS, ...more } : HEADERS;
  return new Response(body, { status, headers });
}

/** The path of an absolute URL, without the cost of parsing it: a probe's. */
function pathOf(url: string): string {
  const start = url.indexOf("/", "http://".length);
  const end = url.indexOf("?", start);
  return end < 0 ? url.slice(start) : url.slice(start, end);
}

/**
 * Whether a browser says that another site's page made the request: by Fetch
 * Metadata, or by an `Origin` that is not the host that was asked.
 */
function isFromAnotherSite({ headers, url }: Request): boolean {
  const origin = headers.get("origin");
  return /^(cross|same)-site$/.test(headers.get("sec-fetch-site") ?? "") ||
    (origin !== null && URL.parse(origin)?.host !== new URL(url).host);
}

/** Whether the request bears the token (RFC 6750, 2.1). Digests are compared,
 * and all of them, so that the time tells nothing about the token. */
async function bears(token: string, { headers }: Request): Promise<boolean> {
  const authorization = headers.get("authorization") ?? "";
  const [, given = ""] = /^Bearer +(\S+)$/i.exec(authorization) ?? [];
  const digest = async (text: string) =>
    new Uint8Array(
      await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)),
    );
  const [left, right] = await Promise.all([digest(given), digest(token)]);
  return left.reduce((sum, byte, i) => sum | (byte ^ right[i]), 0) === 0;
}

const gauge = (name: string, help: string, value: number) =>
  family("gauge", name, help, [[{}, value]]);

type Sample = [labels: Record<string, string>, value: number];

/** A metric in Prometheus' text format, version 0.0.4. */
function family(
  type: "counter" | "gauge",
  name: string,
  help: string,
  samples: Sample[],
): string {
  const text = samples.map(([labels, value]) => {
    const pairs = Object.entries(labels).map(([k, v]) => `${k}="${v}"`);
    return `${name}${pairs.length > 0 ? `{${pairs}}` : ""} ${value}\n`;
  });
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${text.join("")}`;
}

// ---------------------------------------------------------------------------
// The server's life

/** How often a running appup looks at what others did, in ms. */
const SETTLE_EVERY = 1_000;
/** How often it makes sure that it still listens, in ms. */
const LISTEN_AGAIN_EVERY = 500;
/** How long answers under way may keep a stopping server, in ms. */
const SHUTDOWN_WITHIN = 400;

const after = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Serves until SIGTERM or SIGINT. `UP_FILE` then stays as it is: the state is
 * the operator's.
 *
 * @throws when it can't listen.
 */
export async function serve(config: Config): Promise<void> {
  const stop = Promise.withResolvers<string>();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => stop.resolve(signal));
  }

  const log: Log = (event) => console.log(`${now()} ${event}`);
  const appup = makeSwitch(config.file, log);
  const handler = makeHandler(appup, config.token, log);
  let server = listen(config.port, handler);
  await appup.begin(config.startUp); // a toggle that is there by now comes next
  const { hostname, port } = server.addr;
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  const state = appup.known()?.up ? "up" : "down";
  log(
    `appup ${VERSION} on ${host}:${port} for ${config.file}: app is ${state}`,
  );

  // A server that runs out of descriptors stops listening for good. Deno tells
  // so at once, or when its last connection has gone (2.7); but taking the port
  // anew works just when that has happened.
  const listening = setInterval(() => {
    try {
      server = listen(port, handler);
      log("listening again, after there were no descriptors left");
    } catch {
      // It listens, or there still is no descriptor.
    }
  }, LISTEN_AGAIN_EVERY);

  // Somebody may probe with `cat` alone: without any request, too, a drain ends
  // when it should, and what others did is seen.
  const settleLater = (): ReturnType<typeof setTimeout> => {
    const left = Date.parse(appup.known()?.until ?? "") - Date.now();
    const isSoon = left > 0 && left < SETTLE_EVERY;
    return setTimeout(async () => {
      await appup.settle();
      settling = settleLater();
    }, isSoon ? left : SETTLE_EVERY);
  };
  let settling = settleLater();

  log(`${await stop.promise}: stopping`);
  clearInterval(listening);
  clearTimeout(settling);
  await Promise.race([server.shutdown(), after(SHUTDOWN_WITHIN)]);
}

function listen(
  port: number,
  handler: Deno.ServeHandler<Deno.NetAddr>,
): Deno.HttpServer<Deno.NetAddr> {
  const on = (hostname: string) => {
    try {
      const server = Deno.serve({ hostname, port, onListen() {} }, handler);
      server.finished.catch(() => {}); // the server's life goes on without it
      return server;
    } catch (cause) {
      const why = messageOf(cause);
      throw new Error(`cannot listen on port ${port}: ${why}`, { cause });
    }
  };
  try {
    return on("::"); // answers IPv4, too
  } catch (error) {
    const { cause } = error as Error;
    if (cause instanceof Deno.errors.AddrInUse) throw error;
    return on("0.0.0.0"); // there is no IPv6
  }
}

// ---------------------------------------------------------------------------
// The command line

const HELP = `\
appup ${VERSION}: a switch in front of a pod's readiness

  appup                               serve UP_FILE over HTTP
  appup up [--reason TEXT]            go up
  appup down [--for 10m] [--reason TEXT]
                                      go down; with --for, a running appup puts
                                      the app back up by itself
  appup health                        exit 0 when up, 1 when down
  appup --help, --version

  UP_FILE      /pod/up.txt   the file that is there when the app is up
  UP_PORT      9999          where to serve
  UP_INITIAL   down          what a new volume starts with: up or down
  UP_TOKEN                   what /up and /down ask for as a bearer token`;

/** @throws {UsageError} for what is not `--for` or `--reason` with a value. */
function parseOptions(args: string[]): { for?: string; reason?: string } {
  const options: Record<string, string> = {};
  for (let rest = args; rest.length > 0;) {
    const [option, ...values] = rest;
    const [, name, value = values.shift()] =
      /^--(for|reason)(?:=(.*))?$/s.exec(option) ?? [];
    if (!name || value === undefined) {
      throw new UsageError(`what is ${option}? See appup --help`);
    }
    options[name] = value;
    rest = values;
  }
  return options;
}

/**
 * Runs the command line.
 *
 * @returns the exit code, one of {@linkcode EXIT}.
 */
export async function main([command, ...rest]: string[]): Promise<number> {
  const config = () => configure((name) => Deno.env.get(name));
  try {
    switch (command) {
      case undefined:
        await serve(config());
        return EXIT.OK;
      case "up":
      case "down": {
        const { for: duration, reason } = parseOptions(rest);
        const up = command === "up";
        const order = parseOrder(up, duration, reason);
        const appup = makeSwitch(config().file, console.error);
        const changed = await appup.flip(up, `appup ${command}`, order);
        console.log(outcome(up, changed, order));
        return EXIT.OK;
      }
      case "health": {
        if (rest.length > 0) throw new UsageError("health takes no options");
        const up = await makeSwitch(config().file, console.error).isUp();
        console.log(`app is ${up ? "up" : "down"}`);
        return up ? EXIT.OK : EXIT.FAILED;
      }
      case "-h":
      case "--help":
        console.log(HELP);
        return EXIT.OK;
      case "--version":
        console.log(`appup ${VERSION}`);
        return EXIT.OK;
      default:
        throw new UsageError(`no command ${command}; see appup --help`);
    }
  } catch (error) {
    console.error(messageOf(error));
    return error instanceof UsageError ? EXIT.USAGE : EXIT.FAILED;
  }
}

// No `await` here: while a module waits, Deno keeps 1.4 MB from its start.
if (import.meta.main) main(Deno.args).then(Deno.exit);
