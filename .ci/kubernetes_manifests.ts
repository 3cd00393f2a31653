/**
 * Reads the documents of a manifest as JSON on stdin and prints what
 * `.ci/kubernetes` needs of them:
 *
 *   schema               a module that compiles and runs only if every document
 *                        is right about Kubernetes' API
 *   restricted           nothing, if all containers have what the restricted Pod
 *                        Security Standard asks for; otherwise what they lack,
 *                        and exit code 1
 *   ports                nothing, if a policy's ports are numbers or names of ports;
 *                        otherwise those that the API refuses, and exit code 1
 *   sidecar KIND         the appup container as far as all examples agree on it
 *   get KIND PATH        a value, a list line by line; where items have a name,
 *                        it stands for them in the path and in the output
 *   pod KIND NAME [FROM=TO]...
 *                        a Pod that podman can play, with images renamed from
 *                        FROM (without its tag) to TO; where FROM is the name of
 *                        an environment variable, that is set to TO instead; where
 *                        it is a path, the file TO of this machine is seen there
 */

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };

interface Env {
  name: string;
  value?: string;
  valueFrom?: Json;
}

interface SecurityContext {
  runAsNonRoot?: boolean;
  allowPrivilegeEscalation?: boolean;
  capabilities?: { drop?: string[] };
  seccompProfile?: { type: string };
}

interface Container {
  name: string;
  image: string;
  restartPolicy?: string;
  env?: Env[];
  ports?: Json;
  volumeMounts?: { name: string; mountPath: string }[];
  securityContext?: SecurityContext;
  lifecycle?: Json;
  startupProbe?: Json;
  livenessProbe?: Json;
  readinessProbe?: Json;
}

interface PodSpec {
  initContainers?: Container[];
  containers: Container[];
  volumes?: { name: string; configMap?: { name: string }; emptyDir?: Json }[];
  securityContext?: SecurityContext;
}

interface PodTemplate {
  metadata: { labels: Record<string, string> };
  spec: PodSpec;
}

interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string };
  spec?: {
    ingress?: { ports?: { port?: number | string }[] }[];
    template?: PodTemplate;
    jobTemplate?: { spec: { template: PodTemplate } };
  };
}

const models = "npm:kubernetes-models@5.1.0"; // Kubernetes 1.36

const manifests: Manifest[] = JSON.parse(
  await new Response(Deno.stdin.readable).text(),
);

function find(kind: string): Manifest {
  const found = manifests.find((manifest) => manifest.kind === kind);
  if (!found) throw new Error(`no ${kind} in this file`);
  return found;
}

function podOf({ spec }: Manifest): PodTemplate | undefined {
  return spec?.jobTemplate?.spec.template ?? spec?.template;
}

/** The types know which fields exist, the models at run time their formats. */
function schema(): string {
  return manifests.map((manifest, n) => {
    const { apiVersion, kind } = manifest;
    return `import { ${kind} as Model${n}, type I${kind} as Type${n} } ` +
      `from "${models}/${apiVersion}/${kind}";\n` +
      `const document${n}: Type${n} = ${JSON.stringify(manifest, null, 2)};\n` +
      `new Model${n}(document${n}).validate();\n` +
      `console.log("valid: ${apiVersion} ${kind} ${manifest.metadata.name}");\n`;
  }).join("");
}

function restricted(): string {
  const faults = manifests.flatMap((manifest) => {
    const spec = podOf(manifest)?.spec;
    if (!spec) return [];
    return [...spec.initContainers ?? [], ...spec.containers].flatMap((one) => {
      const context = { ...spec.securityContext, ...one.securityContext };
      const rules = {
        "runAsNonRoot: true": context.runAsNonRoot === true,
        "allowPrivilegeEscalation: false":
          context.allowPrivilegeEscalation === false,
        "drop: [ALL]": context.capabilities?.drop?.includes("ALL"),
        "RuntimeDefault": context.seccompProfile?.type === "RuntimeDefault",
      };
      return Object.entries(rules).filter(([, kept]) => !kept).map(([rule]) =>
        `${manifest.kind} ${manifest.metadata.name}, ${one.name}: no ${rule}`
      );
    });
  });
  return refuse(faults);
}

/** The API's rule, which its types can't say: `port` is any number or text there. */
function ports(): string {
  const isPort = (port: number | string) =>
    typeof port === "number"
      ? Number.isInteger(port) && port >= 1 && port <= 65535
      : port.length <= 15 && /^[a-z0-9]+(-[a-z0-9]+)*$/.test(port) &&
        /[a-z]/.test(port);
  const named = manifests.flatMap(({ spec }) => spec?.ingress ?? [])
    .flatMap(({ ports = [] }) => ports.flatMap(({ port }) => port ?? []));
  return refuse(
    named.filter((port) => !isPort(port)).map((port) =>
      `${port} is neither the number nor the name of a port`
    ),
  );
}

function refuse(faults: string[]): string {
  if (faults.length) {
    console.error(faults.join("\n"));
    Deno.exit(1);
  }
  return "";
}

/** With sorted keys, so that equal values are equal texts. */
function print(value: unknown): string {
  const sort = (_key: string, value: unknown) =>
    value instanceof Object && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort())
      : value;
  return JSON.stringify(value, sort, 2);
}

/** How it may be flipped differs on purpose. */
function sidecar(kind: string): string {
  const appup = podOf(find(kind))?.spec.initContainers?.find(
    ({ name }) => name === "appup",
  );
  if (!appup) throw new Error("no sidecar called appup in this file");
  const env = appup.env?.filter(({ name }) =>
    name !== "UP_TOKEN" && name !== "UP_FROM"
  );
  return print({ ...appup, env });
}

function nameOf(item: Json): Json | undefined {
  return item instanceof Object && !Array.isArray(item) ? item.name : undefined;
}

function get(kind: string, path: string): string {
  let value = find(kind) as unknown as Json | undefined;
  for (const key of path.split("/")) {
    if (Array.isArray(value)) {
      value = value.find((item) => nameOf(item) === key);
    } else if (value instanceof Object) {
      value = value[key];
    }
    if (value === undefined) throw new Error(`no ${path} in the ${kind}`);
  }
  if (Array.isArray(value)) {
    return value.map((item) => nameOf(item) ?? item).join("\n");
  }
  return value instanceof Object ? print(value) : String(value);
}

/**
 * podman's `play kube` runs no hooks, probes or native sidecars, publishes every
 * port on the host, and gives all pods one volume per name of an emptyDir.
 */
function pod(kind: string, name: string, changes: string[]): string {
  const template = podOf(find(kind));
  if (!template) throw new Error(`no pod in the ${kind}`);
  const change = new Map(changes.map((text) => {
    const [from, ...to] = text.split("=");
    return [from, to.join("=")];
  }));

  const files = [...change].filter(([from]) => from.startsWith("/")).map(
    ([mountPath, path], n) => ({ mountPath, path, name: `${name}-file-${n}` }),
  );
  const readEnv = (env: Env): Env => {
    const value = change.get(env.name) ?? env.value;
    if (value === undefined) throw new Error(`${env.name} is in no file`);
    return { name: env.name, value };
  };
  const inPodman = (container: Container): Container => ({
    ...container,
    image: change.get(container.image.replace(/:[^:/]*$/, "")) ??
      container.image,
    env: container.env?.map(readEnv),
    volumeMounts: [
      ...(container.volumeMounts ?? []).map((mount) => ({
        ...mount,
        name: `${name}-${mount.name}`,
      })),
      ...files.map(({ name, mountPath }) => ({ name, mountPath })),
    ],
    ports: undefined,
    restartPolicy: undefined,
    lifecycle: undefined,
    startupProbe: undefined,
    livenessProbe: undefined,
    readinessProbe: undefined,
  });

  const { initContainers = [], containers, volumes, ...spec } = template.spec;
  const isSidecar = (one: Container) => one.restartPolicy === "Always";
  const played = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { ...template.metadata, name },
    spec: {
      ...spec,
      initContainers: initContainers.filter((one) => !isSidecar(one))
        .map(inPodman),
      containers: [...initContainers.filter(isSidecar), ...containers]
        .map(inPodman),
      volumes: [
        ...(volumes ?? []).map((volume) => ({
          ...volume,
          name: `${name}-${volume.name}`,
          configMap: volume.configMap &&
            { name: `${name}-${volume.configMap.name}` },
        })),
        ...files.map(({ name, path }) => ({
          name,
          hostPath: { path, type: "File" },
        })),
      ],
    },
  };
  const configMaps = manifests.filter(({ kind }) => kind === "ConfigMap").map((
    map,
  ) => ({ ...map, metadata: { name: `${name}-${map.metadata.name}` } }));
  return [...configMaps, played].map((document) => JSON.stringify(document))
    .join("\n---\n");
}

const [command, ...args] = Deno.args;
const commands: Record<string, () => string> = {
  schema,
  restricted,
  ports,
  sidecar: () => sidecar(args[0]),
  get: () => get(args[0], args[1]),
  pod: () => pod(args[0], args[1], args.slice(2)),
};
const output = commands[command]();
if (output) console.log(output.trimEnd());
