/**
 * The least that Deno can do: what appup answers, without a look at anything.
 * bench.ts runs it with the flags that appup has. No server in Deno costs less.
 */
const headers = {
  "content-type": "text/plain; charset=utf-8",
  "cache-control": "no-store",
};

Deno.serve(
  { hostname: "::", port: Number(Deno.env.get("UP_PORT")), onListen() {} },
  () => new Response("app is up", { headers }),
);
