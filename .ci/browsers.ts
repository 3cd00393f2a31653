/**
 * Whether another site can flip the switch of a running appup, tried with a
 * real Chromium. From the root of the repository, as root:
 *   deno run -A .ci/browsers.ts
 *
 * A case proves nothing unless its request reached appup: appup's own count of
 * answers tells. Whether it flipped, the file tells. APPUP_BIN names a binary to
 * try instead of main.ts.
 */

const POD = "10.9.9.9"; // private, as a pod's address is
const STRANGER = "203.0.113.7"; // public to a browser; reserved for examples
const TIME_LIMIT = 60_000; // ms for each case and each start; usual is one second

const [folder] = Deno.args; // given inside the namespaces

// ------------------------------------------------------------------ The place

function missing(): string | undefined {
  for (const tool of ["chromium", "ip", "openssl", "unshare"]) {
    const { success } = new Deno.Command("sh", {
      args: ["-c", `command -v ${tool}`],
    }).outputSync();
    if (!success) return `there is no ${tool}`;
  }
  const { success } = unshare("ip", "link", "set", "lo", "up").outputSync();
  if (!success) return "only root can make a network of its own";
}

/** Network and processes of its own: nothing else is reached, nothing stays. */
function unshare(...command: string[]): Deno.Command {
  const namespaces = ["--net", "--pid", "--fork", "--mount-proc"];
  return new Deno.Command("unshare", {
    args: [...namespaces, "--kill-child", ...command],
  });
}

async function runInNamespaces(): Promise<number> {
  const folder = await Deno.makeTempDir({
    dir: "/tmp", // where appup may write
    prefix: "appup-browsers-",
  });
  const self = [Deno.execPath(), "run", "-A", import.meta.filename!];
  const child = unshare(...self, folder).spawn();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => child.kill("SIGKILL"));
  }
  const { code } = await child.status;
  await Deno.remove(folder, { recursive: true });
  return code;
}

async function output(command: string, ...args: string[]): Promise<string> {
  const said = await new Deno.Command(command, { args }).output();
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  if (!said.success) throw new Error(`${command}: ${decode(said.stderr)}`);
  return decode(said.stdout);
}

async function request(url: string, method = "GET"): Promise<string> {
  const signal = AbortSignal.timeout(TIME_LIMIT);
  return await (await fetch(url, { method, signal })).text();
}

type Look<T> = () => T | undefined | Promise<T | undefined>;

/** What `look` finds at last, or nothing when the time is over. */
async function eventually<T>(look: Look<T>): Promise<T | undefined> {
  const deadline = performance.now() + TIME_LIMIT;
  while (performance.now() < deadline) {
    const found = await look();
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// ---------------------------------------------------------------- The programs

class Appup {
  private constructor(readonly port: number, readonly file: string) {}

  static async start(port = 0): Promise<Appup> {
    const file = `${await Deno.makeTempDir({ dir: folder })}/up.txt`;
    const [command, ...args] = await appupCommand();
    const { stdout } = new Deno.Command(command, {
      args,
      env: { UP_FILE: file, UP_PORT: `${port}`, UP_INITIAL: "up" },
      stdout: "piped",
    }).spawn();
    let log = "";
    (async () => {
      const texts = stdout.pipeThrough(new TextDecoderStream());
      for await (const text of texts) log += text;
    })();
    const taken = await eventually(() => / on \S+:(\d+) for /.exec(log)?.[1]);
    if (!taken) throw new Error(`appup does not start: ${log}`);
    return new Appup(Number(taken), file);
  }

  goUp() {
    Deno.writeTextFileSync(this.file, "");
  }

  /** How often /down was answered, by status. */
  async answers(): Promise<Record<string, number>> {
    const metrics = await request(`http://127.0.0.1:${this.port}/metrics`);
    const sample = /^appup_requests_total{path="\/down",code="(\d+)"} (\d+)$/gm;
    return Object.fromEntries(
      [...metrics.matchAll(sample)].map(([, code, n]) => [code, Number(n)]),
    );
  }

  /** How /down was answered since there were `before` answers, and the effect. */
  async outcome(before: Record<string, number>): Promise<string> {
    const code = await eventually(async () => {
      const codes = Object.entries(await this.answers());
      return codes.find(([code, n]) => n > (before[code] ?? 0))?.[0];
    });
    if (!code) return "no request arrived";
    const isUp = await Deno.stat(this.file).then(() => true, () => false);
    return `${code}, ${isUp ? "stays up" : "flipped"}`;
  }
}

async function appupCommand(): Promise<string[]> {
  const binary = Deno.env.get("APPUP_BIN");
  if (binary) return [await Deno.realPath(binary)];
  const flags = await output(Deno.execPath(), "task", "-q", "flags");
  return [Deno.execPath(), "run", ...flags.trim().split(" "), "main.ts"];
}

/** Headless, and driven by its DevTools' HTTP interface alone. */
class Chromium {
  private constructor(readonly devtools: string) {}

  static async start(): Promise<Chromium> {
    const profile = `${folder}/profile`;
    const rules = [
      `MAP stranger.example ${STRANGER}`,
      "MAP name.example 127.0.0.1",
      "MAP rebound.example 127.0.0.1",
    ];
    new Deno.Command("chromium", {
      args: [
        "--headless=new",
        "--no-sandbox", // its sandbox refuses root
        `--user-data-dir=${profile}`,
        "--remote-debugging-port=0",
        `--host-resolver-rules=${rules}`,
        "--ignore-certificate-errors",
        // It would itself refuse what a public page asks of a private address,
        // as other browsers don't: images, fetches and prefetches.
        "--disable-features=LocalNetworkAccessChecks",
      ],
      stdout: "null",
      stderr: "null",
    }).spawn();
    const port = await eventually(() =>
      Deno.readTextFile(`${profile}/DevToolsActivePort`)
        .then((text) => text.split("\n")[0], () => undefined)
    );
    if (!port) throw new Error("chromium does not start");
    return new Chromium(`http://127.0.0.1:${port}/json`);
  }

  /** A new tab, as if somebody had typed `address` into its bar. */
  async open(address: string): Promise<{ id: string }> {
    const query = encodeURIComponent(address);
    return JSON.parse(await request(`${this.devtools}/new?${query}`, "PUT"));
  }

  async close({ id }: { id: string }) {
    await request(`${this.devtools}/close/${id}`);
  }
}

// ------------------------------------------------------------------- The cases

const script = (text: string) => `<script>${text}</script>`;
const form = (method: string, url: string) =>
  `<form method="${method}" action="${url}"></form>` +
  script("document.forms[0].submit()");

/** Pages that have a browser ask for `url`. */
const attacks: Record<string, (url: string) => string> = {
  "image": (url) => `<img src="${url}">`,
  "image without referrer": (url) =>
    `<img referrerpolicy="no-referrer" src="${url}">`,
  "fetch": (url) => script(`fetch("${url}", { mode: "no-cors" })`),
  "POST by fetch": (url) =>
    script(`fetch("${url}", { mode: "no-cors", method: "POST" })`),
  "form": (url) => form("get", url),
  "POST by form": (url) => form("post", url),
  "location": (url) => script(`location = "${url}"`),
  "prefetch": (url) => `<link rel="prefetch" href="${url}">`,
};

/** Such a page, too. It claims `Sec-Fetch-Site: none`, as if it was typed. */
const prerender = (url: string) =>
  `<script type="speculationrules">{
    "prerender": [{ "urls": ["${url}"], "eagerness": "immediate" }]
  }</script>`;

/** Answers with the page that stands in the query. */
function servePage({ url }: Request): Response {
  const html = new URL(url).searchParams.get("html") ?? "";
  const headers = { "content-type": "text/html" };
  return new Response(`<!doctype html>${html}`, { headers });
}

const page = (origin: string, html: string) =>
  `${origin}/?html=${encodeURIComponent(html)}`;

const REFUSED = "403, stays up";

const onStranger = { hostname: STRANGER, port: 0, onListen() {} };

/**
 * A site whose certificate says that its issuer's can be had at `url`. A browser
 * asks there by itself, and claims `Sec-Fetch-Site: none`.
 */
async function certifiedBy(url: string): Promise<string> {
  const [keyFile, certFile] = [`${folder}/key.pem`, `${folder}/cert.pem`];
  await output(
    "openssl",
    ...["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"],
    ...["-addext", `authorityInfoAccess=caIssuers;URI:${url}`],
    ...["-keyout", keyFile, "-out", certFile],
  );
  const key = await Deno.readTextFile(keyFile);
  const cert = await Deno.readTextFile(certFile);
  const { addr } = Deno.serve({ ...onStranger, key, cert }, servePage);
  return `https://stranger.example:${addr.port}`;
}

/**
 * DNS rebinding: a page goes on asking its own origin, whose name and port
 * become appup's.
 */
async function rebind(chromium: Chromium, method: string): Promise<Appup> {
  let asks = false;
  const stranger = Deno.serve({ port: 0, onListen() {} }, (request) => {
    asks ||= request.url.endsWith("/down");
    return servePage(request);
  });
  const { port } = stranger.addr;
  const ask = `setInterval(() => fetch("/down", { method: "${method}" }), 200)`;
  await chromium.open(page(`http://rebound.example:${port}`, script(ask)));
  if (!await eventually(() => asks || undefined)) {
    throw new Error("chromium does not open the page that is to be rebound");
  }
  await stranger.shutdown();
  return await Appup.start(port);
}

async function checkAll(): Promise<boolean> {
  await output("ip", "link", "set", "lo", "up");
  for (const address of [POD, STRANGER]) {
    await output("ip", "address", "add", address, "dev", "lo");
  }
  const appup = await Appup.start();
  const chromium = await Chromium.start();
  const { addr } = Deno.serve(onStranger, servePage);
  const stranger = `http://stranger.example:${addr.port}`;

  let allPass = true;
  const report = (name: string, outcome: string, wanted: string) => {
    const passes = outcome === wanted;
    console.log(`${passes ? "ok    " : "FAILED"} ${name}: ${outcome}`);
    allPass &&= passes;
  };
  const check = async (name: string, address: string, wanted = REFUSED) => {
    appup.goUp();
    const before = await appup.answers();
    const tab = await chromium.open(address);
    report(name, await appup.outcome(before), wanted);
    await chromium.close(tab);
  };

  for (const host of ["127.0.0.1", "localhost", "name.example", POD]) {
    const url = `http://${host}:${appup.port}/down`;
    for (const [name, html] of Object.entries(attacks)) {
      await check(`${name} at ${host}`, page(stranger, html(url)));
    }
    await check(`certificate's issuer at ${host}`, await certifiedBy(url));
  }
  for (const host of ["127.0.0.1", "localhost"]) { // the only ones it prerenders
    const url = `http://${host}:${appup.port}/down`;
    await check(`prerender at ${host}`, page(stranger, prerender(url)));
  }
  for (const method of ["GET", "POST"]) {
    const rebound = await rebind(chromium, method);
    report(`${method} after rebinding`, await rebound.outcome({}), REFUSED);
  }
  const typed = `http://localhost:${appup.port}/down`;
  await check("typed into the bar", typed, "200, flipped");
  return allPass;
}

// ------------------------------------------------------------------- The start

if (folder) {
  Deno.exit(await checkAll() ? 0 : 1); // and with it all that it started
} else {
  const reason = missing();
  if (reason) console.log(`not run: browsers: ${reason}`);
  else Deno.exitCode = await runInNamespaces();
}
