// Stands in for jsr:@std/fs where it is out of reach: what main_test.ts uses.
import { existsSync } from "node:fs";

export function exists(path: string | URL): Promise<boolean> {
  return Promise.resolve(existsSync(path));
}
