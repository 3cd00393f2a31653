/**
 * appup stands in for the health check that an application in Kubernetes does
 * not have. It is a switch in front of the pod's readiness.
 *
 * The switch is a file, `UP_FILE`. While it exists, the pod is up. When it is
 * gone, the pod is down. Every answer comes from a look at the file that began
 * after the request arrived, so a `touch` or an `rm` in any container of the
 * pod counts at once. `UP_FILE.state`, beside it, says since when, by whom and
 * why, and when a drain ends.
 */
const VERSION = "1.2.0";

/** A mistake of the caller: 400 over HTTP, exit code 2 on the command line. */
class UsageError extends Error {}

const isoTime = (ms: number) => new Date(ms).toISOString();
const now = () => isoTime(Date.now());
const after = (ms: number) => new Promise((done) => setTimeout(done, ms));
/** Resolves once the event loop has read every request that has arrived. */
const nextTurn = () => new Promise<void>((done) => setImmediate(done));
const messageOf = (error: unknown) =>
  error instanceof Error ? error.message : String(error);

// --- Configuration -----------------------------------------------------------

/** @throws {UsageError} with a line for each wrong value; never with a token. */
function configure() {
  const file = env("UP_FILE") ?? "/pod/up.txt";
  const port = env("UP_PORT") ?? "9999";
  const initial = env("UP_INITIAL") ?? "down";
  const from = env("UP_FROM") ?? "anywhere";
  const token = env("UP_TOKEN");

  const wrong: string[] = [];
  const check = (isRight: boolean, given: string, hint: string) => {
    if (!isRight) wrong.push(`${given}: ${hint}`);
  };
  check(
    isUsableFile(file),
    `UP_FILE=${JSON.stringify(file)}`,
    "must be an absolute path below /pod or /tmp, in an existing folder; " +
      "mount the volume at /pod here, whatever its path is in other containers",
  );
  check(
    /^\d{1,5}$/.test(port) && Number(port) <= 65_535,
    `UP_PORT=${JSON.stringify(port)}`,
    "must be a whole number from 0 (any free port) to 65535; a Service named " +
      '"up" sets this variable in every pod: set UP_PORT yourself',
  );
  check(
    initial === "down" || initial === "up",
    `UP_INITIAL=${JSON.stringify(initial)}`,
    'must be "down" or "up", or not set',
  );
  check(
    from === "anywhere" || from === "pod",
    `UP_FROM=${JSON.stringify(from)}`,
    'must be "anywhere" or "pod", or not set',
  );
  check(
    token === undefined || /^[\x21-\x7e]+$/.test(token),
    "UP_TOKEN=(not shown)",
    "must be visible ASCII, without spaces or line breaks, or not set",
  );
  if (wrong.length > 0) throw new UsageError(wrong.join("\n"));
  return { file, port: Number(port), initial, from, token };
}

/** The value of a variable. Bytes that are no text become a wrong value. */
function env(name: string): string | undefined {
  try {
    return Deno.env.get(name);
  } catch {
    return "\ufffd"; // Deno's own error would print the value, even a token
  }
}

const folderOf = (path: string) => path.slice(0, path.lastIndexOf("/")) || "/";

function isUsableFile(path: string): boolean {
  const name = path.slice(path.lastIndexOf("/") + 1);
  try {
    return path.startsWith("/") && !["", ".", ".."].includes(name) &&
      Deno.statSync(folderOf(path)).isDirectory;
  } catch {
    return false; // it does not exist, or it is not permitted
  }
}

// --- What a caller may ask for, over HTTP and on the command line ------------

interface FlipOptions {
  /** How long to stay down: in ms, and as the caller wrote it. */
  drain?: { ms: number; text: string };
  reason?: string;
}

const LONGEST_DRAIN_S = 24 * 3600;
const LONGEST_REASON = 200;

function parseFlipOptions(up: boolean, given: URLSearchParams): FlipOptions {
  for (const name of given.keys()) {
    if (name !== "for" && name !== "reason") {
      const unknown = `unknown parameter ${JSON.stringify(name)}`;
      throw new UsageError(`${unknown}: a toggle takes for and reason`);
    }
    if (given.getAll(name).length > 1) {
      throw new UsageError(`${name} is given twice`);
    }
  }
  const duration = given.get("for");
  const reason = given.get("reason");
  return {
    drain: duration === null ? undefined : parseDrain(up, duration),
    reason: reason ? parseReason(reason) : undefined,
  };
}

/** Hours, minutes and seconds, as Go writes them; or seconds alone. */
const DURATION = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$|^(\d+)$/;

function parseDrain(up: boolean, text: string): FlipOptions["drain"] {
  if (up) throw new UsageError("only down takes a duration");
  const [, h = 0, m = 0, s = 0, bare] = DURATION.exec(text) ?? [];
  const seconds = Number(h) * 3600 + Number(m) * 60 + Number(bare ?? s);
  if (seconds < 1 || seconds > LONGEST_DRAIN_S) {
    throw new UsageError(
      "a duration is 90s, 10m, 2h, 1h30m or a number of seconds, from 1s to 24h",
    );
  }
  return { ms: seconds * 1000, text: bare ? `${text}s` : text };
}

/** Replaces what could forge a line or change the direction of the text. */
const sanitize = (text: string) =>
  text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu, "\ufffd");

function parseReason(text: string): string {
  if ([...text].length > LONGEST_REASON || sanitize(text) !== text) {
    throw new UsageError(
      `a reason is at most ${LONGEST_REASON} characters, without control ` +
        "characters, line breaks or bidirectional controls",
    );
  }
  return text;
}

const phrase = (up: boolean) => `app is ${up ? "up" : "down"}`;

/** What the caller is told after a flip. */
function outcome(up: boolean, changed: boolean, { drain }: FlipOptions) {
  if (drain) return `${phrase(up)} for ${drain.text}`;
  return up || changed ? phrase(up) : "app is already down";
}

// --- The state: since when, by whom, why, and until when ---------------------

/** What is known about the switch. Times are in ISO 8601. */
interface State {
  up: boolean;
  since: string;
  /** Who did it: a request and its address, or a command. */
  by: string;
  reason?: string;
  /** When a drain ends and the app goes up by itself. */
  until?: string;
}

/**
 * The state that counts. The file decides: a state counts only if it agrees
 * with the file, and the stored one comes first. The one that this process
 * knows counts without its end: a drain lasts only as long as its state is
 * stored, because another process may have ended it on a full disk.
 */
function countingState(up: boolean, stored?: State, known?: State): State {
  if (stored?.up === up) return stored;
  if (known?.up === up) return { ...known, until: undefined };
  return { up, since: now(), by: "changed by hand" };
}

/** A state in one line, for the log. */
function describe({ up, by, reason, until }: State): string {
  const end = until ? ` until ${until}` : "";
  const why = reason ? `, because ${JSON.stringify(reason)}` : "";
  return `${phrase(up)}${end}: ${by}${why}`;
}

/** A state in a few lines, for the page and `appup health`. */
function report({ up, since, by, reason, until }: State): string {
  return [
    phrase(up),
    `since  ${since}`,
    `by     ${by}`,
    reason && `why    ${reason}`,
    until && `until  ${until}`,
  ].filter(Boolean).join("\n");
}

/** Returns undefined for a text that appup did not write. */
function parseState(text: string): State | undefined {
  const isText = (value: unknown) => typeof value === "string";
  const isTime = (value: unknown) =>
    isText(value) && Date.parse(`${value}`) > 0;
  try {
    // Any container may have written it, and it goes to the log and the page.
    const { up, since, by, reason, until } = JSON.parse(
      text,
      (_, value) => isText(value) ? sanitize(value) : value,
    );
    const isState = typeof up === "boolean" && isTime(since) && isText(by) &&
      (reason === undefined || isText(reason)) &&
      (until === undefined || (isTime(until) && !up));
    return isState ? { up, since, by, reason, until } : undefined;
  } catch {
    return undefined; // not JSON, null, or nested too deep
  }
}

const LARGEST_STATE = 64 * 1024; // in bytes: far more than a state needs

class StateFile {
  constructor(private path: string, private draft: string) {}

  /**
   * Returns undefined where nothing exists. Anything that is no state counts
   * as none: an empty file, or something with a `problem` that says what it is.
   */
  async read(): Promise<{ state?: State; problem?: string } | undefined> {
    const problem = (what: string) => ({ problem: `${this.path}: ${what}` });
    try {
      const { isFile, size } = await Deno.lstat(this.path);
      // To read a FIFO or a device could take forever.
      if (!isFile) return problem("not a regular file");
      if (size > LARGEST_STATE) return problem("too large");
      const text = await Deno.readTextFile(this.path);
      if (text === "") return {};
      const state = parseState(text);
      return state ? { state } : problem("not written by appup");
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
      return problem(error.message);
    }
  }

  /** Replaces the file in one step, so that nobody ever reads half of it. */
  async write(text: string): Promise<void> {
    try {
      await Deno.writeTextFile(this.draft, text, { createNew: true });
      await Deno.rename(this.draft, this.path);
    } catch (error) {
      await this.discardDraft();
      throw error;
    }
  }

  /** A crash may leave a draft. On a full disk, it takes the room of a file. */
  async discardDraft(): Promise<void> {
    await Deno.remove(this.draft).catch(() => {});
  }

  /**
   * Empties the file in place, which needs no space. To remove it would make
   * the volume look new.
   *
   * @throws when an older state stays.
   */
  async empty(): Promise<void> {
    const found = await ifExists(Deno.lstat(this.path));
    if (found && !found.isFile) return; // it never counts
    await Deno.writeTextFile(this.path, "")
      .catch(() => this.write("")) // another user's file
      .catch((error) => {
        if (found) throw error;
      });
  }
}

/** Resolves with undefined where the file does not exist. */
async function ifExists<T>(promise: Promise<T>): Promise<T | undefined> {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

// --- The switch --------------------------------------------------------------

/**
 * Whether the file exists. It is synchronous, because that takes 3 µs; a promise
 * would take 80.
 *
 * @throws when it can't tell: no volume, no regular file, no permission.
 */
function fileExists(file: string): boolean {
  try {
    if (Deno.statSync(file).isFile) return true;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    Deno.statSync(folderOf(file)); // without a volume, nobody knows
    return false;
  }
  throw new Error(`not a regular file: ${file}`);
}

// How many requests may wait at once. HTTP/1.1 brings no more than the image has
// descriptors. HTTP/2 may bring more, and they would fill V8's heap.
const MOST_AT_ONCE = 200;
const LOCK_PATIENCE = 2_000; // in ms: how long a flip waits for the lock
const LOCK_RETRY = 5; // in ms: how often it tries

type EventLog = Pick<ServerLog, "event" | "trouble">;

/**
 * The switch: a file that exists or not, and the state that goes with it.
 *
 * To go down, it stores the state and then removes the file. To go up, it
 * creates the file and then stores the state. A crash in between leaves the app
 * up, with a state that does not agree with the file, and so does not count.
 *
 * A flip locks the folder first, and so does a look that stores what it found.
 * The lock is flock(2): if its holder dies, the kernel releases it.
 */
export class Switch {
  /** How often this process saw the app go up and down. */
  readonly transitions = { up: 0, down: 0 };

  private stateFile: StateFile;
  private folder: string;
  private known?: State;
  private lastJob: Promise<unknown> = Promise.resolve();
  private nextLook?: Promise<boolean>;
  private sharers = 0;

  /** `startUp` says whether a new volume starts up or down. */
  constructor(
    private file: string,
    private log: EventLog,
    private startUp: boolean,
  ) {
    this.stateFile = new StateFile(`${file}.state`, `${file}.state.new`);
    this.folder = folderOf(file);
  }

  /**
   * Whether the file exists, by a look that begins after the call. Calls in the
   * same turn of the event loop share one look, unless there are too many.
   *
   * @throws as fileExists does.
   */
  async isUp(): Promise<boolean> {
    if (this.sharers === MOST_AT_ONCE) return fileExists(this.file);
    this.sharers++;
    return await (this.nextLook ??= nextTurn().then(() => {
      this.nextLook = undefined;
      this.sharers = 0;
      return fileExists(this.file);
    }));
  }

  /** The state that counts now. It waits for no lock, and throws as isUp does. */
  async look(): Promise<State> {
    const up = await this.isUp();
    const stored = await this.stateFile.read()
      .catch((error) => this.log.trouble(error));
    return countingState(up, stored?.state, this.known);
  }

  /**
   * Creates or removes the file, and returns whether that changed anything. If
   * many processes go down at once, it is true for one of them.
   *
   * @throws when the file can't be changed, when the end of a drain can't be
   * stored, or when another process holds the lock too long. Then nothing has
   * changed.
   */
  flip(up: boolean, by: string, { drain, reason }: FlipOptions) {
    return this.withLock(async () => {
      const before = await this.reconcile();
      const isSame = before.up === up;
      if (isSame && !drain && !reason && !before.until) return false;
      return await this.apply({
        up,
        since: isSame ? before.since : now(),
        by,
        reason: reason ?? (isSame ? before.reason : undefined),
        until: drain && isoTime(Date.now() + drain.ms),
      });
    });
  }

  /** Notes what others did, and ends a drain that is over. It never throws. */
  async settle(): Promise<void> {
    await this.withLock(async () => {
      const { until } = await this.reconcile();
      if (until && Date.parse(until) <= Date.now()) {
        await this.apply({ up: true, since: now(), by: "its drain is over" });
      }
    }).catch((error) => this.log.trouble(error));
  }

  /** Runs one job at a time, in this process and among all processes. */
  private withLock<T>(job: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + LOCK_PATIENCE;
    const goOn = (error: unknown) => {
      this.log.trouble(`no locks on ${this.folder}: ${messageOf(error)}`);
      return true; // some file systems have none
    };
    const result = this.lastJob.then(async () => {
      using folder = await Deno.open(this.folder);
      // A wait in the kernel could not be ended.
      while (!await folder.tryLock(true).catch(goOn)) {
        if (performance.now() > deadline) {
          throw new Error(`another process keeps ${this.folder} locked`);
        }
        await after(LOCK_RETRY);
      }
      return await job();
    });
    this.lastJob = result.catch(() => {});
    return result;
  }

  /** Makes the stored state the one that counts, and returns it. */
  private async reconcile(): Promise<State> {
    await this.stateFile.discardDraft();
    const up = fileExists(this.file);
    const stored = await this.stateFile.read();
    if (stored?.problem) this.log.trouble(stored.problem);
    const isNew = !up && !stored && !this.known;
    // To start down removes nothing: somebody may create the file just now.
    if (isNew && this.startUp) await this.create();
    const state = isNew
      ? { up: this.startUp, since: now(), by: "UP_INITIAL" }
      : countingState(up, stored?.state, this.known);
    if (state === stored?.state) this.remember(state);
    else await this.keep(state);
    return state;
  }

  /** Makes it so, and returns whether that changed the file. */
  private async apply(state: State): Promise<boolean> {
    if (state.up) {
      const changed = await this.create();
      await this.keep(state);
      return changed;
    }
    await this.store(state);
    const changed = await this.remove();
    this.remember(state);
    return changed;
  }

  /** Returns whether this call created the file. */
  private async create(): Promise<boolean> {
    try {
      await Deno.writeFile(this.file, new Uint8Array(), { createNew: true });
      return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      const found = await ifExists(Deno.lstat(this.file));
      if (!found?.isSymlink || fileExists(this.file)) return false;
      throw new Error(`broken symbolic link: ${this.file}`);
    }
  }

  /** Returns whether this call removed the file. */
  private async remove(): Promise<boolean> {
    try {
      return await ifExists(Deno.remove(this.file).then(() => true)) ?? false;
    } catch (error) {
      await this.reconcile(); // the old state counts again
      throw error;
    }
  }

  /** Stores and remembers what is so already. It never throws. */
  private async keep(state: State): Promise<void> {
    await this.store(state).catch((error) => this.log.trouble(error));
    this.remember(state);
  }

  /**
   * Stores a state. Where that fails, it makes sure that no older state counts.
   *
   * @throws when the end of a drain can't be stored, or an older state stays.
   */
  private async store(state: State): Promise<void> {
    try {
      await this.stateFile.write(`${JSON.stringify(state)}\n`);
    } catch (error) {
      if (state.until) throw error;
      // The state of an app that is up stops counting when the file is removed.
      // If that fails, it is still needed.
      const older = await this.stateFile.read();
      if (state.up || !older?.state?.up) await this.stateFile.empty();
      this.log.trouble(`the state is not stored: ${messageOf(error)}`);
    }
  }

  /** Tells the log and the metrics what is new. */
  private remember(state: State): void {
    const { known } = this;
    this.known = state;
    if (JSON.stringify(known) === JSON.stringify(state)) return;
    if (known && known.up !== state.up) {
      this.transitions[state.up ? "up" : "down"]++;
    }
    this.log.event(describe(state));
  }
}

// --- The handler -------------------------------------------------------------

const READ = ["GET", "HEAD"];
const TOGGLE = ["GET", "POST"]; // no HEAD, which must be safe (RFC 9110, 9.2.1)

const ROUTES = new Map<string, Route>([
  ["/health", [READ, health, "200 when up, 503 when down: readinessProbe"]],
  ["/up", [TOGGLE, toggle, "go up; ?reason=TEXT"]],
  ["/down", [TOGGLE, toggle, "go down; ?for=10m and back up; ?reason=TEXT"]],
  ["/livez", [READ, livez, "200 while appup serves: livenessProbe"]],
  ["/metrics", [READ, metrics, "for Prometheus"]],
  ["/", [READ, page, "the state, and who probes it"]],
]);

type Route = [methods: string[], respond: Responder, does: string];
type Responder = (context: Context, request: Request, info: Info) => Answer;
type Answer = Response | Promise<Response>;
type Handler = Deno.ServeHandler<Deno.NetAddr>;
type Info = Deno.ServeHandlerInfo<Deno.NetAddr>;

interface Context {
  appup: Switch;
  log: EventLog;
  stats: RequestStats;
  fromPodOnly: boolean;
  /** The token that toggles need, if any. */
  token?: string;
}

const ENDPOINTS = [...ROUTES]
  .map(([path, [, , does]]) => `${path.padEnd(10)}${does}\n`).join("");

function makeHandler(context: Context): Handler {
  let underWay = 0;
  return async (request, info) => {
    const { host, path, query } = targetOf(request);
    const isProbe = path === "/health" || path === "/livez";
    // To read headers costs a quarter of the rate, so those of a plain probe are
    // not read here: the host in its URL has to do.
    const isPlain = isProbe && query === "";
    if (!isHost(host) || !isPlain && !isHost(request.headers.get("host"))) {
      return respond(400, "invalid Host header");
    }
    if (!isPlain && isTooLong(request)) {
      return respond(431, `headers exceed ${LONGEST_HEADERS} characters`);
    }
    const route = ROUTES.get(path);
    if (!route) {
      return respond(404, `not found; the endpoints are:\n${ENDPOINTS}`);
    }
    const [methods, responder] = route;
    let response: Response;
    try {
      // Too many requests must not take the pod out of rotation.
      if (++underWay > MOST_AT_ONCE && !isProbe) {
        throw new Error("too many requests at once");
      }
      response = methods.includes(request.method)
        ? await responder(context, request, info)
        : refuseMethod(request.method, methods);
    } catch (error) {
      const isUsage = error instanceof UsageError;
      if (!isUsage) context.log.trouble(error);
      response = respond(isUsage ? 400 : 503, messageOf(error));
    }
    underWay--;
    context.stats.count(path, request, response);
    return response;
  };
}

/**
 * What is asked for, and from which host, as the client wrote it. Deno does not
 * normalize `Request.url`, and its path may have come with the Host header.
 */
function targetOf({ url }: Request) {
  const [, host = "", path, query = ""] =
    /^[^:]+:\/\/([^/?#]*)([^?#]*)(.*)$/s.exec(url) ?? [];
  return { host, path: path || "/", query };
}

/** In characters, with the URL. Longer ones, if many wait, fill V8's heap. */
const LONGEST_HEADERS = 16_384;
const isTooLong = ({ url, headers }: Request) =>
  `${url}${[...headers]}`.length > LONGEST_HEADERS;

/** Whether it is a host with or without a port (RFC 9110, 7.2), or empty. */
const isHost = (text: string | null) =>
  /^(?:[\w.-]+|\[[\da-f:.]+\])?(?::\d{0,5})?$/i.test(text ?? "");

function refuseMethod(method: string, allowed: string[]): Response {
  const message = `${method} is not allowed; use ${allowed.join(" or ")}`;
  return respond(405, message, { allow: allowed.join(", ") });
}

/** What was asked since the start, on the paths that exist. */
class RequestStats {
  /** How often, by the labels that Prometheus reads. */
  readonly counts = new Map<string, number>();
  /** Who asked /health last, when (ms since 1970), and the answer's status. */
  lastProbe?: { by: string; at: number; status: number };

  count(path: string, request: Request, { status }: Response): void {
    const labels = `{path="${path}",code="${status}"}`;
    this.counts.set(labels, (this.counts.get(labels) ?? 0) + 1);
    const at = Date.now();
    // One in a millisecond is enough, because to read headers takes long.
    if (path !== "/health" || at === this.lastProbe?.at) return;
    const by = request.headers.get("user-agent") ?? "";
    this.lastProbe = { by, at, status };
  }
}

const HEADERS = {
  "content-type": "text/plain; charset=utf-8",
  "cache-control": "no-store",
};

function respond(status: number, body: string, more?: Record<string, string>) {
  const headers = more ? { ...HEADERS, ...more } : HEADERS;
  return new Response(body, { status, headers });
}

// To clone a response takes 0.2 µs. To make one takes 0.7 to 1.8.
const UP = respond(200, phrase(true));
const DOWN = respond(503, phrase(false));

async function health({ appup }: Context): Promise<Response> {
  return (await appup.isUp() ? UP : DOWN).clone();
}

function livez(): Response {
  return respond(200, "ok");
}

async function toggle(context: Context, request: Request, info: Info) {
  const { method, headers } = request;
  const from = info.remoteAddr.hostname.replace(/^::ffff:/, "");
  const refusal = refuseCaller(headers, from, context);
  if (refusal) return refusal;
  if (await hasBody(request)) {
    const instead = "put for and reason into the URL: /down?for=10m";
    throw new UsageError(`a toggle takes no body; ${instead}`);
  }
  const { path, query } = targetOf(request);
  const up = path === "/up";
  const options = parseFlipOptions(up, new URLSearchParams(query));
  const by = `${method} ${path} from ${from}`;
  const changed = await context.appup.flip(up, by, options);
  const wasDown = !up && !changed && !options.drain;
  return respond(wasDown ? 503 : 200, outcome(up, changed, options));
}

/** Over HTTP/2, a body may come without any header that says so. */
async function hasBody({ headers, body }: Request): Promise<boolean> {
  return headers.has("transfer-encoding") ||
    Number(headers.get("content-length")) > 0 ||
    Boolean((await body?.getReader().read())?.value?.length);
}

function refuseCaller(
  headers: Headers,
  from: string,
  { fromPodOnly, token }: Context,
): Response | undefined {
  if (mayBeForeignPage(headers)) {
    const instead = "use curl, kubectl exec, or the address bar on localhost";
    return respond(403, `a web page may not flip the switch: ${instead}`);
  }
  // The pod's containers and kubectl port-forward come from these addresses.
  if (fromPodOnly && from !== "127.0.0.1" && from !== "::1") {
    const instead = "use kubectl exec, or kubectl port-forward and curl";
    return respond(403, `only the pod itself may flip the switch: ${instead}`);
  }
  if (token !== undefined && !hasToken(token, headers)) {
    const challenge = { "www-authenticate": "Bearer" };
    const message = "a token is required: Authorization: Bearer TOKEN";
    return respond(401, message, challenge);
  }
}

/**
 * Whether a page of another site may have made a browser send this request. A
 * browser says where a request comes from (Fetch Metadata), but only to hosts
 * that it trusts. A browser that does not, or fetches in advance, is refused.
 */
function mayBeForeignPage(headers: Headers): boolean {
  const origin = headers.get("origin");
  const isForeign = origin !== null &&
    URL.parse(origin)?.host !== headers.get("host");
  const agent = headers.get("user-agent") ?? ""; // PowerShell says Mozilla, too
  const isBrowser = /^Mozilla\/(?!.*PowerShell\/)/.test(agent) ||
    [...headers.keys()].some((name) => name.startsWith("sec-fetch-"));
  // A browser may fetch an address that stands in a certificate. No page made
  // it do so, but a stranger may have written that certificate.
  const mode = headers.get("sec-fetch-mode") ?? "navigate";
  const site = headers.get("sec-fetch-site");
  const isMeant = !headers.has("sec-purpose") &&
    (site === "same-origin" || site === "none" && mode === "navigate");
  return isForeign || isBrowser && !isMeant;
}

/** Whether it has the token (RFC 6750, 2.1). Timing reveals only the length. */
function hasToken(token: string, headers: Headers): boolean {
  const authorization = headers.get("authorization") ?? "";
  const [, given = ""] = /^Bearer +(\S+)$/i.exec(authorization) ?? [];
  let difference = given.length ^ token.length;
  for (let i = 0; i < token.length; i++) {
    difference |= given.charCodeAt(i) ^ token.charCodeAt(i);
  }
  return difference === 0;
}

async function page({ appup, stats }: Context): Promise<Response> {
  const state = report(await appup.look());
  const probe = describeProbe(stats.lastProbe);
  return respond(200, `${state}\nprobe  ${probe}\n\n${ENDPOINTS}`);
}

function describeProbe(probe: RequestStats["lastProbe"]): string {
  if (!probe) return "none since the start: does a readinessProbe point here?";
  const ago = ((Date.now() - probe.at) / 1000).toFixed(1);
  const name = probe.by.slice(0, 60).replace(/[^\x20-\x7e]/g, "?");
  const by = name || "an unnamed client";
  return `${ago} s ago by ${by}, answered ${probe.status}`;
}

async function metrics({ appup, stats }: Context): Promise<Response> {
  const down = { up: false, until: undefined }; // as a probe takes an error
  const { up, until } = await appup.look().catch(() => down);
  const requests = [...stats.counts]
    .map(([labels, count]) => `appup_requests_total${labels} ${count}\n`);
  const drainEnds = until &&
    `appup_drain_ends_timestamp_seconds ${Date.parse(until) / 1000}\n`;
  const body = `\
# HELP appup_up Whether the app is up.
# TYPE appup_up gauge
appup_up ${+up}
# HELP appup_transitions_total How often the app went up and down.
# TYPE appup_transitions_total counter
appup_transitions_total{to="up"} ${appup.transitions.up}
appup_transitions_total{to="down"} ${appup.transitions.down}
# HELP appup_requests_total Requests to known paths.
# TYPE appup_requests_total counter
${requests.join("")}\
# HELP appup_last_health_request_timestamp_seconds When the last request to /health came.
# TYPE appup_last_health_request_timestamp_seconds gauge
appup_last_health_request_timestamp_seconds ${(stats.lastProbe?.at ?? 0) / 1000}
# HELP appup_drain_ends_timestamp_seconds When the drain ends.
# TYPE appup_drain_ends_timestamp_seconds gauge
${drainEnds ?? ""}\
# HELP appup_build_info The version, as a label.
# TYPE appup_build_info gauge
appup_build_info{version="${VERSION}"} 1
# HELP process_start_time_seconds When appup started.
# TYPE process_start_time_seconds gauge
process_start_time_seconds ${performance.timeOrigin / 1000}
# HELP process_resident_memory_bytes Resident memory.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes ${Deno.memoryUsage().rss}
`;
  const type = "text/plain; version=0.0.4; charset=utf-8";
  return respond(200, body, { "content-type": type });
}

// --- The server's life -------------------------------------------------------

// All in ms.
const SETTLE_EVERY = 1_000; // how often a running appup looks at the file
const OVER_AFTER = 5_000; // when a trouble that does not come back is over
const LISTEN_RETRY = 5; // how often a listener that died tries again
const SHUTDOWN_WITHIN = 400; // how long a stopping server waits for last answers

function print(line: string, to: { writeSync(bytes: Uint8Array): number }) {
  try {
    to.writeSync(new TextEncoder().encode(`${line}\n`));
  } catch {
    // The disk is full, or nobody reads any more.
  }
}

/** The message for EMFILE, whatever call met it, so that it is one trouble. */
const NO_DESCRIPTOR = "too many connections: no descriptor is left";

/** The log of a running appup, on stdout. */
class ServerLog {
  private troubles = new Map<string, number>();

  event(line: string): void {
    print(`${now()} ${line}`, Deno.stdout);
  }

  /** Prints one line when a trouble begins, and one when it is over. */
  trouble(what: unknown): void {
    const isEmfile = (what as { code?: string }).code === "EMFILE";
    const line = isEmfile ? NO_DESCRIPTOR : messageOf(what);
    if (!this.troubles.has(line)) this.event(line);
    this.troubles.set(line, performance.now());
  }

  endTroubles(): void {
    for (const [line, lastMet] of this.troubles) {
      if (performance.now() - lastMet < OVER_AFTER) continue;
      this.troubles.delete(line);
      this.event(`over, not met for ${OVER_AFTER / 1000} s: ${line}`);
    }
  }
}

/**
 * A server that goes on listening. Deno's own stops for good when no descriptor
 * is left, as happens when many clients stall. Then this one closes all their
 * connections and listens again.
 */
class Listener {
  server!: Deno.HttpServer<Deno.NetAddr>;
  private connections!: AbortController;
  private isStopping = false;

  /** @throws when it can't listen. */
  constructor(port: number, private handler: Handler, private log: EventLog) {
    try {
      this.listen({ hostname: "::", port }); // it answers IPv4, too
    } catch {
      this.listen({ hostname: "0.0.0.0", port }); // without IPv6
    }
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    const stopped = this.server.shutdown().catch(() => {}); // it had died
    await Promise.race([stopped, after(SHUTDOWN_WITHIN)]);
  }

  private listen({ hostname, port }: { hostname: string; port: number }) {
    const { signal } = this.connections = new AbortController();
    const options = { hostname, port, signal, onListen() {} };
    try {
      this.server = Deno.serve(options, this.handler);
    } catch (error) {
      throw new Error(`cannot listen on port ${port}: ${messageOf(error)}`);
    }
    this.server.finished.catch(() => this.listenAgain());
  }

  private async listenAgain(): Promise<void> {
    while (!this.isStopping) {
      this.log.trouble(NO_DESCRIPTOR);
      this.connections.abort(); // half requests, too, hold descriptors
      try {
        return this.listen(this.server.addr);
      } catch {
        await after(LISTEN_RETRY); // there is no descriptor yet
      }
    }
  }
}

/** Serves until a signal. The file then stays as it is: the operator decides. */
async function serve(config: ReturnType<typeof configure>): Promise<void> {
  const { file, port, initial, from, token } = config;
  const stop = Promise.withResolvers<string>();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => stop.resolve(signal));
  }
  const log = new ServerLog();
  const appup = new Switch(file, log, initial === "up");
  const stats = new RequestStats();
  const context = { appup, log, stats, fromPodOnly: from === "pod", token };
  const listener = new Listener(port, makeHandler(context), log);
  const { addr } = listener.server;
  const host = addr.hostname.replace(/.*:.*/, "[$&]");
  log.event(`appup ${VERSION} on ${host}:${addr.port} for ${file}`);
  settleForever(appup, log);
  log.event(`${await stop.promise}: stopping`);
  await listener.stop();
}

/** Without any request, too, a drain ends and what others did is noted. */
async function settleForever(appup: Switch, log: ServerLog): Promise<never> {
  while (true) {
    await appup.settle();
    log.endTroubles();
    await after(SETTLE_EVERY);
  }
}

// --- The command line --------------------------------------------------------

const HELP = `\
appup ${VERSION}: a switch in front of a pod's readiness

  appup                          serve UP_FILE over HTTP
  appup up [--reason TEXT]       go up
  appup down [--for 1h30m] [--reason TEXT]
                                 go down; with --for, a running appup goes back
                                 up by itself after that time, at most 24h
  appup health                   print the state; exit 0 when up, 1 when down
  appup help, appup --version

  UP_FILE      /pod/up.txt   the file that exists while the app is up
  UP_PORT      9999          the port to serve on
  UP_INITIAL   down          how a new volume starts: up or down
  UP_FROM      anywhere      who may toggle over HTTP: anywhere or pod
  UP_TOKEN                   the bearer token that /up and /down require`;

/** @throws {UsageError} for anything but `--for` and `--reason` with a value. */
function parseArgs(args: string[]): URLSearchParams {
  const given = new URLSearchParams();
  const words = args.values();
  for (const word of words) {
    const [, name, value = words.next().value] =
      /^--(for|reason)(?:=(.*))?$/s.exec(word) ?? [];
    if (!name) throw unknownArgument(word);
    if (value === undefined) throw new UsageError(`${word} needs a value`);
    given.append(name, value);
  }
  return given;
}

function unknownArgument(word: string): UsageError {
  const shown = JSON.stringify(word);
  return new UsageError(
    word !== "" && DURATION.test(word)
      ? `unexpected argument ${shown}: --for=${word}?`
      : `unknown argument ${shown}; see appup --help`,
  );
}

/** It did what it was asked to do. */
const OK = 0;
/** It failed (port in use, file system), or `appup health` found it down. */
const FAILED = 1;
/** The command line or the configuration is wrong. Nothing was changed. */
const WRONG_USAGE = 2;

/** Runs the command line, and returns the exit code. */
async function main(args: string[]): Promise<number> {
  const [command, ...rest] = args;
  const isHelp = args.includes("--help") || args.includes("-h");
  const say = (line: string) => print(line, Deno.stdout);
  const complain = (what: unknown) => print(messageOf(what), Deno.stderr);
  const openSwitch = () => {
    const { file, initial } = configure();
    const log = { event() {}, trouble: complain };
    return new Switch(file, log, initial === "up");
  };
  try {
    switch (isHelp ? "help" : command) {
      case "help":
        say(HELP);
        return OK;
      case "up":
      case "down": {
        const up = command === "up";
        const options = parseFlipOptions(up, parseArgs(rest));
        const by = `appup ${command}`;
        const changed = await openSwitch().flip(up, by, options);
        say(outcome(up, changed, options));
        return OK;
      }
      case "health": {
        if (rest.length > 0) throw unknownArgument(rest[0]);
        const state = await openSwitch().look();
        say(report(state));
        return state.up ? OK : FAILED;
      }
      case "--version":
        if (rest.length > 0) throw unknownArgument(rest[0]);
        say(`appup ${VERSION}`);
        return OK;
      case undefined:
        await serve(configure());
        return OK;
      default:
        throw unknownArgument(command);
    }
  } catch (error) {
    complain(error);
    return error instanceof UsageError ? WRONG_USAGE : FAILED;
  }
}

// No `await` here: while a module waits, Deno keeps 1.4 MB more.
if (import.meta.main) main(Deno.args).then(Deno.exit);
