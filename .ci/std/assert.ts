// Stands in for jsr:@std/assert where it is out of reach: what main_test.ts uses.
import { ok } from "node:assert/strict";

export {
  deepStrictEqual as assertEquals,
  match as assertMatch,
  ok as assert,
} from "node:assert/strict";

export function assertStringIncludes(actual: string, expected: string): void {
  ok(actual.includes(expected), `"${actual}" lacks "${expected}"`);
}
