/**
 * appup stands in for the health check that an application in Kubernetes does
 * not have: a switch in front of the pod's readiness.
 *
 * The switch is a file, `UP_FILE`. There, the pod is up; gone, it is down. Each
 * answer comes from a look at it that began after the question arrived, so a
 * `touch` or an `rm` from any container of the pod counts at once. Beside it
 * lies `UP_FILE.state`: since when, by whom, why, and until when a drain lasts.
 *
 * @module
 */
const VERSION = "1.1.0";

/** A mistake of the caller's: 400 over HTTP, exit code 2 on the command line. */
class UsageError extends Error {}

const now = () => new Date().toISOString();
const after = (ms: number) => new Promise((done) => setTimeout(done, ms));
/** Until the event loop's turn is over, and all that has arrived is read. */
const turnOver = () => new Promise<void>((done) => setImmediate(done));
const bytesOf = (text: string) => new TextEncoder().encode(text);
const messageOf = (error: unknown) =>
  error instanceof Error ? error.message : String(error);

// ---------------------------------------------------------------------------
// Configuration

interface Variable {
  fallback: string;
  allows(value: string): boolean;
  /** What to do about a value that is not allowed. */
  wayOut: string;
}

const LARGEST_PORT = 65_535;

const VARIABLES: Record<string, Variable> = {
  UP_FILE: {
    fallback: "/pod/up.txt",
    allows: isUsableFile,
    wayOut:
      "must be an absolute path in an existing folder below /pod or /tmp;" +
      " mount the volume at /pod here, whatever its path is in other containers",
  },
  UP_PORT: {
    fallback: "9999",
    allows: (port) => /^\d{1,5}$/.test(port) && Number(port) <= LARGEST_PORT,
    wayOut: "must be a whole number from 0 (a free port) to 65535; a Service " +
      'named "up" sets it in every pod, unless the container sets it, too',
  },
  UP_INITIAL: either("down", "up"),
  UP_FROM: either("anywhere", "pod"),
  UP_TOKEN: {
    fallback: "",
    // What a header can carry; `echo` ends a Secret in a newline.
    allows: (token) => /^[\x21-\x7e]+$/.test(token),
    wayOut:
      "must be visible ASCII characters, without spaces or a newline; to " +
      "leave the toggles open, do not set it at all",
  },
};

function either(fallback: string, other: string): Variable {
  const allows = (value: string) => value === fallback || value === other;
  const wayOut = `must be "${fallback}" or "${other}", or not set at all`;
  return { fallback, allows, wayOut };
}

/** A variable's value; where it is no text, one that no variable may have. */
function env(name: string): string | undefined {
  try {
    return Deno.env.get(name);
  } catch {
    return "\ufffd"; // Deno's error would print the value, a token's as well
  }
}

/**
 * Reads the variables.
 *
 * @throws {UsageError} with a line for each wrong value, all at once: the
 * variable, its value (never a token), and the way out.
 */
function configure() {
  const wrong: string[] = [];
  const read = (name: string) => {
    const { fallback, allows, wayOut } = VARIABLES[name];
    const value = env(name) ?? fallback;
    const shown = name === "UP_TOKEN" ? "(not shown)" : JSON.stringify(value);
    if (!allows(value)) wrong.push(`${name}=${shown}: ${wayOut}`);
    return value;
  };
  const config = {
    file: read("UP_FILE"),
    port: Number(read("UP_PORT")),
    startUp: read("UP_INITIAL") === "up",
    fromPodOnly: read("UP_FROM") === "pod",
    token: env("UP_TOKEN") === undefined ? undefined : read("UP_TOKEN"),
  };
  if (wrong.length > 0) throw new UsageError(wrong.join("\n"));
  return config;
}

const folderOf = (path: string) => path.slice(0, path.lastIndexOf("/")) || "/";
const stateFileOf = (path: string) => `${path}.state`;
const draftOf = (path: string) => `${stateFileOf(path)}.new`;

/** How long the name of a file may be on Linux, in bytes. */
const LONGEST_NAME = 255;

function isUsableFile(path: string): boolean {
  const name = path.slice(path.lastIndexOf("/") + 1);
  try {
    return path.startsWith("/") && !["", ".", ".."].includes(name) &&
      bytesOf(draftOf(name)).length <= LONGEST_NAME &&
      Deno.statSync(folderOf(path)).isDirectory;
  } catch {
    return false; // not there, or not permitted
  }
}

// ---------------------------------------------------------------------------
// What may be asked of a flip, over HTTP and on the command line alike

interface FlipOptions {
  /** How long to stay down, in ms, and as the caller wrote it. */
  drain?: { ms: number; text: string };
  /** Why, for whoever looks next. */
  reason?: string;
}

const SECONDS_PER: Record<string, number> = { "": 1, s: 1, m: 60, h: 3600 };
const LONGEST_DRAIN_S = 24 * SECONDS_PER.h;
const LONGEST_REASON = 200;

/** @throws {UsageError} that says which form is accepted. */
function parseFlipOptions(up: boolean, given: URLSearchParams): FlipOptions {
  for (const name of ["for", "reason"]) {
    if (given.getAll(name).length < 2) continue;
    throw new UsageError(`${name} is given twice`);
  }
  const duration = given.get("for");
  const reason = given.get("reason");
  return {
    drain: duration === null ? undefined : parseDrain(up, duration),
    reason: reason ? parseReason(reason) : undefined,
  };
}

function parseDrain(up: boolean, text: string): FlipOptions["drain"] {
  if (up) throw new UsageError("only down takes a duration");
  const [, digits, unit] = /^(\d+)([smh]?)$/.exec(text) ?? [];
  const seconds = Number(digits) * SECONDS_PER[unit];
  if (!(seconds >= 1 && seconds <= LONGEST_DRAIN_S)) {
    throw new UsageError(
      "a duration is a whole number of seconds, or one with the unit s, m or " +
        "h, from 1s to 24h: 90, 90s, 10m, 2h",
    );
  }
  return { ms: seconds * 1000, text: unit ? text : `${text}s` };
}

/** Without line breaks and changes of direction, which could forge a line. */
const harmless = (text: string) =>
  text.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu, "\ufffd");

function parseReason(text: string): string {
  if ([...text].length > LONGEST_REASON || harmless(text) !== text) {
    throw new UsageError(
      `a reason is at most ${LONGEST_REASON} characters, without control ` +
        "characters, line breaks or bidirectional controls",
    );
  }
  return text;
}

const phrase = (up: boolean) => `app is ${up ? "up" : "down"}`;

/** What whoever flipped the switch is told, over HTTP and in a shell. */
function outcome(up: boolean, changed: boolean, { drain }: FlipOptions) {
  if (drain) return `${phrase(up)} for ${drain.text}`;
  return up || changed ? phrase(up) : "app is already down";
}

// ---------------------------------------------------------------------------
// What is known about the switch, and where it is kept

/** What is known about the switch. Times are ISO 8601. */
interface State {
  up: boolean;
  /** Since when it is so. */
  since: string;
  /** Who made it so: a request and its address, the command line, ... */
  by: string;
  /** Why, if anybody said. */
  reason?: string;
  /** When a drain ends and the app goes up by itself. */
  until?: string;
}

/** Who made a change that no appup made. */
const BY_HAND = "something other than appup";
/** Who made it so where it was so at the first look. */
const NOT_KNOWN = "not known";

/** A state in one line, for the log. */
function describe({ up, by, reason, until }: State): string {
  const end = until ? ` until ${until}` : "";
  const why = reason ? `, because ${JSON.stringify(reason)}` : "";
  return `${phrase(up)}${end}: ${by}${why}`;
}

/** What a look finds: the file, and the rest where a state agrees with it. */
type Found = Pick<State, "up"> & Partial<State>;

/** The same in a few lines, for the page and `appup health`. */
function report({ up, since, by, reason, until }: Found): string {
  return [
    phrase(up),
    since && `since  ${since}`,
    by && `by     ${by}`,
    reason && `why    ${reason}`,
    until && `until  ${until}`,
  ].filter(Boolean).join("\n");
}

/** @throws {SyntaxError | RangeError} for what no appup wrote. */
function parseState(text: string): State {
  const isText = (value: unknown) => typeof value === "string";
  const isTime = (value: unknown) =>
    isText(value) && Date.parse(`${value}`) > 0;
  // Another container may have written it, to be shown and logged.
  const { up, since, by, reason, until } = JSON.parse(
    text,
    (_, value) => isText(value) ? harmless(value) : value,
  ) ?? {};
  const isState = typeof up === "boolean" && isTime(since) && isText(by) &&
    (reason === undefined || isText(reason)) &&
    (until === undefined || (isTime(until) && !up));
  if (!isState) throw new SyntaxError();
  return { up, since, by, reason, until };
}

/** Far more than a state takes, in bytes. */
const LARGEST_STATE = 64 * 1024;

/** Where the state is kept, beside `UP_FILE`. It reads and writes, no more. */
class StateFile {
  constructor(private path: string, private draft: string) {}

  /**
   * What lies there, if anything does: a state, or an oddity (why it is none), or
   * neither in an empty file: seen before, nothing known.
   *
   * @throws when the file system fails, but not for an oddity.
   */
  async read(): Promise<{ state?: State; oddity?: string } | void> {
    const odd = (why: string) => ({ oddity: `${this.path}: ${why}` });
    try {
      const found = await Deno.lstat(this.path);
      // Reading anything else could wait, or go on, for ever.
      if (!found.isFile) return odd("not a regular file");
      if (found.size > LARGEST_STATE) return odd("too large");
      const text = await Deno.readTextFile(this.path);
      return text ? { state: parseState(text) } : {};
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) {
        // An appup 1.0 that met a damaged one set it aside.
        const damaged = Deno.lstat(`${this.path}.damaged`);
        return await damaged.then(() => odd("set aside by 1.0"), () => {});
      }
      // The engine's message would bring a part of the text into the log.
      if (error instanceof SyntaxError || error instanceof RangeError) {
        return odd("not what appup writes");
      }
      if (error instanceof Deno.errors.PermissionDenied) {
        return odd(error.message);
      }
      throw error;
    }
  }

  /** Writes it whole or not at all: nobody ever reads half a state. */
  async write(state: State): Promise<void> {
    try {
      await ifThere(Deno.remove(this.draft)); // a crash may have left one
      const text = `${JSON.stringify(state)}\n`;
      await Deno.writeTextFile(this.draft, text, { createNew: true });
      await Deno.rename(this.draft, this.path);
    } catch (error) {
      await Deno.remove(this.draft).catch(() => {});
      throw error;
    }
  }

  /** Empties it in place, which takes no room: seen before, nothing known. */
  async empty(): Promise<void> {
    const found = await ifThere(Deno.lstat(this.path));
    if (found && !found.isFile) return;
    const write = () => Deno.writeTextFile(this.path, "");
    await write().catch(async () => {
      await ifThere(Deno.remove(this.path)); // another user's
      await write().catch(() => {}); // no room for a name: none is left
    });
  }
}

/** Nothing where the file is not there. */
async function ifThere<T>(promise: Promise<T>): Promise<T | void> {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

// ---------------------------------------------------------------------------
// The switch

/**
 * How many requests may wait at once. Over HTTP/1.1 there are no more, as the
 * image bounds descriptors; over HTTP/2 there may be, and they fill V8's heap.
 */
const MOST_AT_ONCE = 200;
/** How long a flip waits for other processes, in ms. */
const PATIENCE = 2_000;
/** How often it asks whether they are done, in ms. */
const ASK_AGAIN = 5;

/**
 * The switch: a file that is there or not, and what is known about it.
 *
 * Whoever flips or settles locks the file's folder first (flock(2): the kernel
 * frees it when its holder dies), and then believes the file: where the state
 * says otherwise, somebody changed it by hand.
 *
 * The state changes only while the file is there or stays away. So a crash in
 * the middle of a flip leaves the app up, as it was or as was asked: a flip has
 * happened or it has not, and nothing happens later.
 */
class Switch {
  /** How often the app went up and down while this process watched. */
  readonly transitions = { up: 0, down: 0 };

  private stateFile: StateFile;
  private folder: string;
  private known?: State;
  /** Whether nobody has decided anything yet: until then, nothing is kept. */
  private isNew = true;
  /** An older state, which lies there because it could not be replaced. */
  private stale?: string;
  private queue: Promise<unknown> = Promise.resolve();
  private nextLook?: Promise<boolean>;
  private sharers = 0;

  /**
   * With `startUp`, the first settlement that can goes up where the volume is
   * new: a crash must not put a pod back that somebody took out.
   */
  constructor(
    private file: string,
    private log: Pick<Log, "event" | "trouble">,
    private startUp = false,
  ) {
    this.stateFile = new StateFile(stateFileOf(file), draftOf(file));
    this.folder = folderOf(file);
  }

  /**
   * Whether the file is there, by a look that begins after the call: who asks in
   * the same turn of the event loop shares the one that follows it, unless too
   * many wait for it already.
   *
   * @throws when that can't be told: the volume gone, not a file, no permission.
   */
  async isUp(): Promise<boolean> {
    if (this.sharers === MOST_AT_ONCE) return this.isThere();
    this.sharers++;
    return await (this.nextLook ??= turnOver().then(() => {
      this.nextLook = undefined;
      this.sharers = 0;
      return this.isThere();
    }));
  }

  /** The same with what is known about it, waiting for nobody. */
  async look(): Promise<Found> {
    const up = await this.isUp();
    const stored = await this.stateFile.read();
    const states = [this.fresh(stored?.state), this.known];
    return states.find((state) => state?.up === up) ?? { up };
  }

  /**
   * Creates or removes the file, and tells whether that changed anything. Of any
   * number of simultaneous calls, in whatever processes, one does.
   *
   * @throws when the file can't be flipped, a drain's end can't be kept, or
   * another process holds the lock for too long. Then nothing is flipped.
   */
  flip(up: boolean, by: string, { drain, reason }: FlipOptions) {
    return this.alone(async () => {
      const before = await this.catchUp();
      const isSame = before.up === up && before.by !== NOT_KNOWN;
      if (isSame && !drain && !reason && !before.until) return false;
      return await this.carryOut({
        up,
        since: isSame ? before.since : now(),
        by,
        reason: reason ?? (isSame ? before.reason : undefined),
        until: drain && new Date(Date.now() + drain.ms).toISOString(),
      });
    });
  }

  /**
   * Takes note of what others did, and ends a drain that is over: about once a
   * second, whether anybody asks or not. Never throws.
   */
  async settle(): Promise<void> {
    await this.alone(async () => {
      const { until } = await this.catchUp();
      const isOver = until && Date.parse(until) <= Date.now();
      const isStart = this.startUp && this.isNew;
      const why = isOver ? "its drain is over" : isStart && "UP_INITIAL";
      if (why) await this.carryOut({ up: true, since: now(), by: why });
    }).catch((error) => this.log.trouble(error));
  }

  /** Synchronous: 3 us, where the way to a thread and back takes 80. */
  private isThere(): boolean {
    try {
      if (Deno.statSync(this.file).isFile) return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      Deno.statSync(this.folder); // no file is down, but no volume is an error
      return false;
    }
    throw new Error(`Not a file: stat '${this.file}'`);
  }

  /** Runs `job` after those before it, while no other process runs one. */
  private alone<T>(job: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + PATIENCE;
    const result = this.queue.then(async () => {
      using folder = await Deno.open(this.folder);
      await this.lock(folder, deadline);
      return await job();
    });
    this.queue = result.catch(() => {});
    return result;
  }

  /** Asks time and again: a wait in the kernel could not be given up. */
  private async lock(folder: Deno.FsFile, deadline: number): Promise<void> {
    const isOurs = () =>
      folder.tryLock(true).catch((error) => {
        this.log.trouble(`no locks on ${this.folder}: ${messageOf(error)}`);
        return true; // better than no switch
      });
    while (!await isOurs()) {
      if (performance.now() > deadline) {
        throw new Error(`another process keeps ${this.folder} locked`);
      }
      await after(ASK_AGAIN);
    }
  }

  /** Believes the file, makes the state agree with it, and returns that. */
  private async catchUp(): Promise<State> {
    const up = this.isThere();
    const stored = await this.stateFile.read();
    if (stored?.oddity) this.log.trouble(stored.oddity);
    let last = this.fresh(stored?.state) ?? this.known;
    // Who emptied it had no room for a state, and no drain goes on without one.
    // Whoever lost it otherwise did not mean to.
    const isEmptied = stored && !stored.state && !stored.oddity;
    if (last && isEmptied) last = { ...last, until: undefined };
    const by = last ? BY_HAND : NOT_KNOWN;
    const agreed = last?.up === up ? last : { up, since: now(), by };
    this.isNew &&= !stored && agreed.by === NOT_KNOWN;
    if (!this.isNew && agreed !== stored?.state) await this.tryToStore(agreed);
    this.remember(agreed);
    return agreed;
  }

  /** A state, unless it is the one that could not be replaced. */
  private fresh(state?: State): State | undefined {
    return JSON.stringify(state) === this.stale ? undefined : state;
  }

  /** Makes it so, and tells whether that took this call. */
  private async carryOut(state: State): Promise<boolean> {
    if (!state.up) await this.store(state);
    const changed = state.up ? await this.create() : await this.remove();
    // Who was overtaken did nothing, unless it was to add an end or a reason.
    const isOvertaken = !changed && this.known?.up !== state.up;
    const isByHand = isOvertaken && !state.until && !state.reason;
    const agreed = isByHand ? { ...state, by: BY_HAND } : state;
    if (state.up || isByHand) await this.tryToStore(agreed);
    this.remember(agreed);
    return changed;
  }

  /** Whether this call created it. */
  private async create(): Promise<boolean> {
    try {
      await Deno.writeFile(this.file, new Uint8Array(), { createNew: true });
      return true;
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      const found = await ifThere(Deno.lstat(this.file));
      if (!found?.isSymlink || this.isThere()) return false;
      throw new Error(`A link that leads nowhere: stat '${this.file}'`);
    }
  }

  /** Whether this call removed it. */
  private async remove(): Promise<boolean> {
    try {
      return await ifThere(Deno.remove(this.file).then(() => true)) ?? false;
    } catch (error) {
      if (this.known) await this.store(this.known); // it is as it was
      throw error;
    }
  }

  /**
   * Stores a state. Where there is no room for it, at least no older one stays.
   *
   * @throws when a drain's end can't be stored: it could last for ever; or when
   * an older state can't be removed.
   */
  private async store(state: State): Promise<void> {
    try {
      await this.stateFile.write(state);
    } catch (error) {
      if (state.until) throw error;
      await this.stateFile.empty();
      const why = messageOf(error);
      this.log.trouble(`since when, by whom and why is not kept: ${why}`);
    }
  }

  /** The same for what is so already, whether it can be stored or not. */
  private async tryToStore(state: State): Promise<void> {
    try {
      await this.store(state);
      this.stale = undefined;
    } catch (error) {
      const left = await this.stateFile.read().catch(() => {});
      this.stale = JSON.stringify(left?.state) ?? this.stale;
      this.log.trouble(error);
    }
  }

  /** What is new goes to the log and the metrics. */
  private remember(state: State): void {
    const { known } = this;
    this.known = state;
    if (!known || JSON.stringify(known) === JSON.stringify(state)) return;
    if (known.up !== state.up) this.transitions[state.up ? "up" : "down"]++;
    this.log.event(describe(state));
  }
}

// ---------------------------------------------------------------------------
// The handler

/** What the routes answer from. */
interface Service {
  appup: Switch;
  log: Log;
  tally: Tally;
  fromPodOnly: boolean;
  /** What the toggles ask for, if they do. */
  token?: string;
}

type Handler = Deno.ServeHandler<Deno.NetAddr>;
type Info = Deno.ServeHandlerInfo<Deno.NetAddr>;
type Answer = (
  service: Service,
  request: Request,
  info: Info,
) => ReturnType<Handler>;
type Route = [methods: string[], answer: Answer, does: string];

const READ = ["GET", "HEAD"];
const TOGGLE = ["GET", "POST"]; // no HEAD: it is safe by RFC 9110, 9.2.1

const ROUTES = new Map<string, Route>([
  ["/health", [READ, health, "200 when up, 503 when down: readinessProbe"]],
  ["/up", [TOGGLE, toggle, "go up; ?reason=TEXT"]],
  ["/down", [TOGGLE, toggle, "go down; ?for=10m and back up; ?reason=TEXT"]],
  ["/livez", [READ, livez, "200 while appup serves: livenessProbe"]],
  ["/metrics", [READ, metrics, "for Prometheus"]],
  ["/", [READ, page, "the state, since when, by whom, why; who asks"]],
]);

const ENDPOINTS = [...ROUTES]
  .map(([path, [, , does]]) => `${path.padEnd(10)}${does}\n`).join("");

/** Makes the handler: each request goes through here to its route. */
function makeHandler(service: Service): Handler {
  let underWay = 0;
  return async (request, info) => {
    const { host, path, query } = targetOf(request);
    const isProbe = path === "/health" || path === "/livez";
    // A URL that ends in a probe's path has no room for another Host than its
    // own; to read headers takes a quarter of the rate.
    const isPlain = isProbe && query === "";
    if (!isHost(host) || !isPlain && !isHost(request.headers.get("host"))) {
      return respond(400, "the Host header is no host and port");
    }
    if (!isPlain && isTooLong(request)) {
      return respond(431, `headers exceed ${LONGEST_HEADERS} characters`);
    }
    const route = ROUTES.get(path);
    if (!route) {
      return respond(404, `no such endpoint; there are\n${ENDPOINTS}`);
    }
    const [methods, answer] = route;
    const { method } = request;
    let response: Response;
    try {
      // A stranger who asks much must not take the pod out of rotation by it.
      if (++underWay > MOST_AT_ONCE && !isProbe) {
        throw new Error("too many requests at once");
      }
      response = methods.includes(method)
        ? await answer(service, request, info)
        : respond(405, `not ${method}`, { allow: methods.join(", ") });
    } catch (error) {
      const isCallers = error instanceof UsageError;
      if (!isCallers) service.log.trouble(error);
      response = respond(isCallers ? 400 : 503, messageOf(error));
    }
    underWay--;
    service.tally.count(path, request, response);
    return response;
  };
}

/**
 * What is asked, and of which host, as the client wrote it: `Request.url` is
 * not normalized, and may have a path that stood in the Host header.
 */
function targetOf({ url }: Request) {
  const [, host = "", path, query = ""] =
    /^[^:]+:\/\/([^/?#]*)([^?#]*)(.*)$/s.exec(url) ?? [];
  return { host, path: path || "/", query };
}

/** In characters, the URL with them. Many that wait would fill V8's heap. */
const LONGEST_HEADERS = 16_384;
/** In characters: a name (RFC 1035, 2.3.4) and a port. */
const LONGEST_HOST = 255 + ":65535".length;

const isTooLong = ({ url, headers }: Request) =>
  `${url}${[...headers]}`.length > LONGEST_HEADERS;

/** Whether it is a host, and perhaps a port, or nothing (RFC 9110, 7.2). */
function isHost(text: string | null): boolean {
  if (!text) return true;
  if (text.length > LONGEST_HOST) return false;
  const found = /^(?:[\w.-]+|\[[\da-f:.]+\])?(?::(\d{0,5}))?$/i.exec(text);
  return found !== null && Number(found[1] ?? 0) <= LARGEST_PORT;
}

/** What was asked since the start, of the paths that there are. */
class Tally {
  /** How many requests, by the labels that Prometheus reads. */
  readonly requests = new Map<string, number>();
  /** Who asked /health last, when (ms since 1970), and what they were told. */
  lastProbe?: { by: string; at: number; status: number };

  count(path: string, request: Request, { status }: Response): void {
    const labels = `{path="${path}",code="${status}"}`;
    this.requests.set(labels, (this.requests.get(labels) ?? 0) + 1);
    const at = Date.now();
    // One a millisecond will do: to read headers takes long.
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

// Made once: to clone an answer takes 0.2 us, to make one 0.7 to 1.8.
const UP = respond(200, phrase(true));
const DOWN = respond(503, phrase(false));

async function health({ appup }: Service): Promise<Response> {
  return (await appup.isUp() ? UP : DOWN).clone();
}

function livez(): Response {
  return respond(200, "ok");
}

async function toggle(service: Service, request: Request, info: Info) {
  const { path, query } = targetOf(request);
  const from = info.remoteAddr.hostname.replace(/^::ffff:/, "");
  const refusal = refuse(request.headers, from, service);
  if (refusal) return refusal;
  const up = path === "/up";
  const by = `${request.method} ${path} from ${from}`;
  const options = parseFlipOptions(up, new URLSearchParams(query));
  const changed = await service.appup.flip(up, by, options);
  const wasDown = !up && !changed && !options.drain;
  return respond(wasDown ? 503 : 200, outcome(up, changed, options));
}

/** The answer to a toggle that may not be. */
function refuse(
  headers: Headers,
  from: string,
  { fromPodOnly, token }: Service,
): Response | void {
  if (mayBeAnotherSites(headers)) {
    const instead = "use curl, kubectl exec, or the address bar on localhost";
    return respond(403, `a web page may not flip the switch: ${instead}`);
  }
  // Where the pod's containers and kubectl port-forward come from.
  if (fromPodOnly && from !== "127.0.0.1" && from !== "::1") {
    const instead = "use kubectl exec, or kubectl port-forward and curl";
    return respond(403, `only the pod itself may flip the switch: ${instead}`);
  }
  if (token !== undefined && !bears(token, headers)) {
    const challenge = { "www-authenticate": "Bearer" };
    return respond(401, "this wants Authorization: Bearer TOKEN", challenge);
  }
}

/**
 * Whether another site's page may have made a browser ask this. A browser says
 * where a request comes from (Fetch Metadata), but only to an address that it
 * trusts: where it says nothing, or fetches ahead, nobody may have meant it.
 */
function mayBeAnotherSites(headers: Headers): boolean {
  const origin = headers.get("origin");
  const isForeign = origin !== null &&
    URL.parse(origin)?.host !== headers.get("host");
  const agent = headers.get("user-agent") ?? ""; // PowerShell says Mozilla, too
  const isBrowser = /^Mozilla\/(?!.*PowerShell\/)/.test(agent) ||
    [...headers.keys()].some((name) => name.startsWith("sec-fetch-"));
  // Nobody's page fetches what a certificate names, but who wrote it chose that.
  const mode = headers.get("sec-fetch-mode") ?? "navigate";
  const site = headers.get("sec-fetch-site");
  const isMeant = !headers.has("sec-purpose") &&
    (site === "same-origin" || site === "none" && mode === "navigate");
  return isForeign || isBrowser && !isMeant;
}

/**
 * Whether the token is there (RFC 6750, 2.1). All of it is compared, so that the
 * time tells no more than its length.
 */
function bears(token: string, headers: Headers): boolean {
  const authorization = headers.get("authorization") ?? "";
  const [, given = ""] = /^Bearer +(\S+)$/i.exec(authorization) ?? [];
  let difference = given.length ^ token.length;
  for (let i = 0; i < token.length; i++) {
    difference |= given.charCodeAt(i) ^ token.charCodeAt(i);
  }
  return difference === 0;
}

async function page({ appup, tally }: Service): Promise<Response> {
  const state = report(await appup.look());
  return respond(200, `${state}\n${whoAsked(tally)}\n\n${ENDPOINTS}`);
}

function whoAsked({ lastProbe }: Tally): string {
  if (!lastProbe) return "asked  by nobody since the start: is there a probe?";
  const ago = ((Date.now() - lastProbe.at) / 1000).toFixed(1);
  const by = lastProbe.by.slice(0, 60).replace(/[^\x20-\x7e]/g, "?");
  return `asked  ${ago} s ago by ${by || "no name"}: ${lastProbe.status}`;
}

async function metrics(service: Service): Promise<Response> {
  const down: Found = { up: false }; // as a probe takes it
  const found = await service.appup.look().catch(() => down);
  const type = "text/plain; version=0.0.4; charset=utf-8";
  return respond(200, renderMetrics(found, service), { "content-type": type });
}

function renderMetrics({ up, until }: Found, { appup, tally }: Service) {
  const requestCounts = [...tally.requests]
    .map(([labels, count]) => `appup_requests_total${labels} ${count}\n`);
  const drainEnds = until &&
    `appup_drain_ends_timestamp_seconds ${Date.parse(until) / 1000}\n`;
  return `# HELP appup_up Whether the app is up.
# TYPE appup_up gauge
appup_up ${+up}
# HELP appup_transitions_total Turns up and down.
# TYPE appup_transitions_total counter
appup_transitions_total{to="up"} ${appup.transitions.up}
appup_transitions_total{to="down"} ${appup.transitions.down}
# HELP appup_requests_total Requests to known paths.
# TYPE appup_requests_total counter
${requestCounts.join("")}\
# HELP appup_last_health_request_timestamp_seconds When /health was asked last.
# TYPE appup_last_health_request_timestamp_seconds gauge
appup_last_health_request_timestamp_seconds ${(tally.lastProbe?.at ?? 0) / 1000}
# HELP appup_drain_ends_timestamp_seconds When a drain ends.
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
}

// ---------------------------------------------------------------------------
// The server's life

/** How often a running appup looks at what others did, in ms. */
const SETTLE_EVERY = 1_000;
/** How long a trouble is gone before it is over, in ms. */
const OVER_AFTER = 5_000;
/** How often it makes sure that it still listens, in ms. */
const LISTEN_EVERY = 500;
/** The same while it is flooded, in ms. */
const LISTEN_EVERY_IN_A_FLOOD = 5;
/** How long answers under way may keep a stopping server, in ms. */
const SHUTDOWN_WITHIN = 400;

/** Prints a line if it can: that changes no answer and ends no process. */
function print(line: string, to: { writeSync(bytes: Uint8Array): number }) {
  try {
    to.writeSync(bytesOf(`${line}\n`));
  } catch {
    // The disk is full, or the reader has gone: there is nobody to tell.
  }
}

/** What anybody who meets it says, so that it is one trouble. */
const NO_DESCRIPTOR = "too many connections: no descriptor is left";

/** The log on stdout. */
class Log {
  private troubles = new Map<string, number>();

  event(line: string): void {
    print(`${now()} ${line}`, Deno.stdout);
  }

  /** A line when it begins and one when it is over, however often it is met. */
  trouble(what: unknown): void {
    const isEmfile = (what as { code?: string }).code === "EMFILE";
    const line = isEmfile ? NO_DESCRIPTOR : messageOf(what);
    if (!this.troubles.has(line)) this.event(line);
    this.troubles.set(line, performance.now());
  }

  /** To be called now and then. */
  endTroubles(): void {
    for (const [line, lastMet] of this.troubles) {
      if (performance.now() - lastMet < OVER_AFTER) continue;
      this.troubles.delete(line);
      this.event(`over, not met for ${OVER_AFTER / 1000} s: ${line}`);
    }
  }
}

/**
 * A server that goes on listening. Deno's own stops for good when descriptors
 * run out, as they do when many clients stall. Deno tells so at once, or when
 * the last of them has gone (2.7); but the port can be taken just then.
 */
class Listener {
  private server: Deno.HttpServer<Deno.NetAddr>;
  private connections = new AbortController();
  private lastLost = -Infinity;
  private isStopping = false;

  /** @throws when it can't listen. */
  constructor(port: number, private handler: Handler, private log: Log) {
    try {
      this.server = this.listen("::", port); // answers IPv4, too
    } catch (error) {
      if ((error as Error).cause instanceof Deno.errors.AddrInUse) throw error;
      this.server = this.listen("0.0.0.0", port); // there is no IPv6
    }
    this.checkLater();
  }

  get address(): Deno.NetAddr {
    return this.server.addr;
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    const stopped = this.server.shutdown().catch(() => {}); // it had stopped
    await Promise.race([stopped, after(SHUTDOWN_WITHIN)]);
  }

  private listen(hostname: string, port: number) {
    const connections = new AbortController();
    const { signal } = connections;
    const options = { hostname, port, signal, onListen() {} };
    try {
      const server = Deno.serve(options, this.handler);
      server.finished.catch(() => this.listenAgain());
      this.connections = connections;
      return server;
    } catch (cause) {
      const why = messageOf(cause);
      throw new Error(`cannot listen on port ${port}: ${why}`, { cause });
    }
  }

  private listenAgain(): void {
    if (this.isStopping) return; // to shut down frees the port, too
    const { connections, server, address } = this;
    try {
      this.server = this.listen(address.hostname, address.port);
    } catch {
      return; // it listens, or there is no descriptor yet
    }
    connections.abort(); // half requests, too: they hold the descriptors
    server.shutdown().catch(() => {}); // or Deno 2.7 keeps 20 KB of each
    this.lastLost = performance.now();
    this.log.trouble(NO_DESCRIPTOR);
  }

  private checkLater(): void {
    const isFlooded = performance.now() - this.lastLost < OVER_AFTER;
    setTimeout(() => {
      this.listenAgain();
      this.checkLater();
    }, isFlooded ? LISTEN_EVERY_IN_A_FLOOD : LISTEN_EVERY);
  }
}

/**
 * Serves until SIGTERM or SIGINT. `UP_FILE` then stays as it is: the state is
 * the operator's.
 *
 * @throws when it can't listen.
 */
async function serve(config: ReturnType<typeof configure>): Promise<void> {
  const { file, port, startUp, fromPodOnly, token } = config;
  const stop = Promise.withResolvers<string>();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => stop.resolve(signal));
  }
  const log = new Log();
  const appup = new Switch(file, log, startUp);
  const service = { appup, log, tally: new Tally(), fromPodOnly, token };
  const listener = new Listener(port, makeHandler(service), log);
  await Promise.race([appup.settle(), stop.promise]);
  const { address } = listener;
  const host = address.hostname.replace(/.*:.*/, "[$&]");
  const found = await appup.isUp().then(phrase, messageOf);
  log.event(
    `appup ${VERSION} on ${host}:${address.port} for ${file}: ${found}`,
  );

  settleForEver(appup, log);
  log.event(`${await stop.promise}: stopping`);
  await listener.stop();
}

/**
 * Somebody may probe with `cat` alone: without any request, too, a drain that
 * is over ends, and what others did is seen. The end of the process ends it.
 */
async function settleForEver(appup: Switch, log: Log): Promise<never> {
  while (true) {
    await after(SETTLE_EVERY);
    await appup.settle();
    log.endTroubles();
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
  UP_FROM      anywhere      who may toggle over HTTP: anywhere, or pod alone
  UP_TOKEN                   what /up and /down ask for as a bearer token`;

/** @throws {UsageError} for what is not `--for` or `--reason` with a value. */
function parseArgs(args: string[]): URLSearchParams {
  const given = new URLSearchParams();
  const words = args.values();
  for (const word of words) {
    const [, name, value = words.next().value] =
      /^--(for|reason)(?:=(.*))?$/s.exec(word) ?? [];
    if (!name) throw new UsageError(`what is ${word}? See appup --help`);
    if (value === undefined) throw new UsageError(`${word} wants a value`);
    given.append(name, value);
  }
  return given;
}

/** It did what was asked. */
const OK = 0;
/** It could not (port in use, file system), or `appup health` found down. */
const FAILED = 1;
/** The command line or the configuration is wrong; nothing was touched. */
const WRONG_USAGE = 2;

/** Runs the command line, and returns the exit code. */
async function main(args: string[]): Promise<number> {
  const [command, ...options] = args;
  const isFlip = command === "up" || command === "down";
  const say = (line: string) => print(line, Deno.stdout);
  const complain = (what: unknown) => print(messageOf(what), Deno.stderr);
  const openSwitch = () =>
    new Switch(configure().file, { event() {}, trouble: complain });
  try {
    // Only a flip takes options; another command with more words is none.
    switch (isFlip || options.length === 0 ? command : args.join(" ")) {
      case undefined:
        await serve(configure());
        return OK;
      case "up":
      case "down": {
        const up = command === "up";
        const by = `appup ${command}`;
        const asked = parseFlipOptions(up, parseArgs(options));
        const changed = await openSwitch().flip(up, by, asked);
        say(outcome(up, changed, asked));
        return OK;
      }
      case "health": {
        const found = await openSwitch().look();
        say(report(found));
        return found.up ? OK : FAILED;
      }
      case "-h":
      case "--help":
        say(HELP);
        return OK;
      case "--version":
        say(`appup ${VERSION}`);
        return OK;
      default:
        throw new UsageError(`no command ${args.join(" ")}; see appup --help`);
    }
  } catch (error) {
    complain(error);
    return error instanceof UsageError ? WRONG_USAGE : FAILED;
  }
}

// No `await` here: while a module waits, Deno keeps 1.4 MB from its start.
if (import.meta.main) main(Deno.args).then(Deno.exit);
