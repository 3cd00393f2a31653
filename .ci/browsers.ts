/**
 * Whether the page of another site can flip the switch, tried with a real
 * Chromium. As root:
 *
 *     deno run -A .ci/browsers.ts
 *
 * A case proves nothing unless its request reached appup, so each one waits until
 * appup has counted an answer. Whether it flipped, the file tells.
 */
const POD = "10.9.9.9"; // private, as a pod's address is
const STRANGER = "203.0.113.7"; // public to a browser; reserved for examples
const PATIENCE = 60_000; // in ms; one second is usual
const NAMESPACES = ["--net", "--pid", "--fork", "--mount-proc", "--kill-child"];

const [folder] = Deno.args; // given inside the namespaces

async function output(command: string, ...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(command, { args })
    .output();
  const text = new TextDecoder().decode(success ? stdout : stderr);
  if (!success) throw new Error(`${command}: ${text}`);
  return text;
}

async function request(url: string, method = "GET"): Promise<string> {
  const signal = AbortSignal.timeout(PATIENCE);
  return await (await fetch(url, { method, signal })).text();
}

/** What `look` finds at last. An error counts as nothing found. */
async function eventually<T>(look: () => Promise<T | undefined>): Promise<T> {
  for (const end = performance.now() + PATIENCE; performance.now() < end;) {
    const found = await look().catch(() => undefined);
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`it does not happen: ${look}`);
}

// --- The programs ------------------------------------------------------------

async function startAppup(port: number) {
  const file = `${await Deno.makeTempDir({ dir: folder })}/up.txt`;
  const env = { UP_FILE: file, UP_PORT: `${port}`, UP_INITIAL: "up" };
  const flags = await output(Deno.execPath(), "task", "-q", "flags");
  const args = ["run", ...flags.trim().split(" "), "main.ts"];
  new Deno.Command(Deno.execPath(), { args, env, stdout: "null" }).spawn();
  const url = `http://127.0.0.1:${port}`;
  await eventually(() => request(`${url}/health`));

  /** How often /down was answered: a line for each status. */
  const counts = async () =>
    (await request(`${url}/metrics`)).match(/^.*path="\/down",.*$/gm) ?? [];
  /** How the next request to /down is answered, and whether it flipped. */
  const outcome = async (before: string[]) => {
    const count = await eventually(async () =>
      (await counts()).find((line) => !before.includes(line))
    );
    const isUp = await Deno.stat(file).then(() => true, () => false);
    const [, status] = /code="(\d+)"/.exec(count) ?? [];
    return `${status}, ${isUp ? "stays up" : "flipped"}`;
  };
  return { file, counts, outcome };
}

/** Starts Chromium, and returns the address of its DevTools. */
async function startChromium(): Promise<string> {
  const profile = `${folder}/profile`;
  const args = [
    "--headless=new",
    "--no-sandbox", // its sandbox refuses root
    `--user-data-dir=${profile}`,
    "--remote-debugging-port=0",
    `--host-resolver-rules=MAP stranger.example ${STRANGER},` +
    "MAP name.example 127.0.0.1,MAP rebound.example 127.0.0.1",
    "--ignore-certificate-errors",
    // Otherwise Chromium itself refuses what a public page asks of a private
    // address. Other browsers don't.
    "--disable-features=LocalNetworkAccessChecks",
  ];
  const silent = { stdout: "null", stderr: "null" } as const;
  new Deno.Command("chromium", { args, ...silent }).spawn();
  const port = await eventually(async () =>
    (await Deno.readTextFile(`${profile}/DevToolsActivePort`)).split("\n")[0]
  );
  return `http://127.0.0.1:${port}/json`;
}

/** Opens a tab, as if somebody had typed the address, and returns its id. */
async function open(devtools: string, address: string): Promise<string> {
  const tab = `${devtools}/new?${encodeURIComponent(address)}`;
  return JSON.parse(await request(tab, "PUT")).id;
}

// --- The attacks -------------------------------------------------------------

const script = (text: string) => `<script>${text}</script>`;
const fetchIt = (url: string, method: string) =>
  script(`fetch("${url}", { mode: "no-cors", method: "${method}" })`);
const form = (method: string, url: string) =>
  `<form method="${method}" action="${url}"></form>` +
  script("document.forms[0].submit()");

/** Pages that make a browser ask for `url`. */
const ATTACKS: Record<string, (url: string) => string> = {
  "image": (url) => `<img src="${url}">`,
  "image without referrer": (url) =>
    `<img referrerpolicy="no-referrer" src="${url}">`,
  "fetch": (url) => fetchIt(url, "GET"),
  "POST by fetch": (url) => fetchIt(url, "POST"),
  "form": (url) => form("get", url),
  "POST by form": (url) => form("post", url),
  "location": (url) => script(`location = "${url}"`),
  "prefetch": (url) => `<link rel="prefetch" href="${url}">`,
};

/** Chromium does this on localhost alone, with `Sec-Fetch-Site: none`. */
const prerender = (url: string) =>
  `<script type="speculationrules">{
    "prerender": [{ "urls": ["${url}"], "eagerness": "immediate" }]
  }</script>`;

const page = (origin: string, html: string) =>
  `${origin}/?html=${encodeURIComponent(html)}`;

function servePage({ url }: Request): Response {
  const html = new URL(url).searchParams.get("html") ?? "";
  const headers = { "content-type": "text/html" };
  return new Response(`<!doctype html>${html}`, { headers });
}

const onStranger = { hostname: STRANGER, port: 0, onListen() {} };

/**
 * A site whose certificate names `url` as the place of its issuer's certificate.
 * A browser asks there by itself, with `Sec-Fetch-Site: none`.
 */
async function certifiedBy(url: string): Promise<string> {
  const [key, cert] = [`${folder}/key.pem`, `${folder}/cert.pem`];
  const request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes"];
  const issuer = ["-addext", `authorityInfoAccess=caIssuers;URI:${url}`];
  const to = ["-subj", "/CN=x", "-keyout", key, "-out", cert];
  await output("openssl", ...request, ...issuer, ...to);
  const read = Deno.readTextFileSync;
  const options = { ...onStranger, key: read(key), cert: read(cert) };
  const { addr } = Deno.serve(options, servePage);
  return `https://stranger.example:${addr.port}`;
}

/** DNS rebinding: the name and port of a page become those of an appup. */
async function rebind(devtools: string, method: string): Promise<string> {
  const asks = Promise.withResolvers<void>();
  const stranger = Deno.serve({ port: 0, onListen() {} }, (request) => {
    if (request.url.endsWith("/down")) asks.resolve();
    return servePage(request);
  });
  const { port } = stranger.addr;
  const ask = `setInterval(() => fetch("/down", { method: "${method}" }), 200)`;
  await open(devtools, page(`http://rebound.example:${port}`, script(ask)));
  await asks.promise;
  await stranger.shutdown();
  return await (await startAppup(port)).outcome([]);
}

// --- All of it ---------------------------------------------------------------

async function checkAll(): Promise<void> {
  await output("ip", "link", "set", "lo", "up");
  for (const address of [POD, STRANGER]) {
    await output("ip", "address", "add", address, "dev", "lo");
  }
  const appup = await startAppup(9999);
  const devtools = await startChromium();
  const { addr } = Deno.serve(onStranger, servePage);
  const stranger = `http://stranger.example:${addr.port}`;

  const report = (name: string, seen: string, wanted = "403, stays up") => {
    console.log(`${seen === wanted ? "ok" : "FAILED"}: ${name}: ${seen}`);
    if (seen !== wanted) Deno.exitCode = 1;
  };
  const check = async (name: string, address: string, wanted?: string) => {
    await Deno.writeTextFile(appup.file, "");
    const before = await appup.counts();
    const tab = await open(devtools, address);
    report(name, await appup.outcome(before), wanted);
    await request(`${devtools}/close/${tab}`);
  };

  for (const host of ["127.0.0.1", "localhost", "name.example", POD]) {
    const url = `http://${host}:9999/down`;
    for (const [name, html] of Object.entries(ATTACKS)) {
      await check(`${name} at ${host}`, page(stranger, html(url)));
    }
    await check(`certificate's issuer at ${host}`, await certifiedBy(url));
  }
  for (const host of ["127.0.0.1", "localhost"]) {
    const html = prerender(`http://${host}:9999/down`);
    await check(`prerender at ${host}`, page(stranger, html));
  }
  for (const method of ["GET", "POST"]) {
    report(`${method} after rebinding`, await rebind(devtools, method));
  }
  const typed = "http://localhost:9999/down";
  await check("typed into the address bar", typed, "200, flipped");
}

/** In a network and with processes of its own: nothing else is reached or stays. */
async function runInNamespaces(): Promise<void> {
  try {
    await output("which", "chromium", "openssl", "ip");
    await output("unshare", ...NAMESPACES, "true"); // only root may
  } catch {
    console.log("not run: browsers: root, chromium, openssl and ip are needed");
    return;
  }
  const folder = await Deno.makeTempDir({ dir: "/tmp" }); // appup may write there
  const self = [Deno.execPath(), "run", "-A", import.meta.filename!, folder];
  const args = [...NAMESPACES, ...self];
  const { code } = await new Deno.Command("unshare", { args }).spawn().status;
  Deno.exitCode = code;
  await Deno.remove(folder, { recursive: true });
}

if (folder) checkAll().finally(() => Deno.exit());
else await runInNamespaces();
