// Stands in for jsr:@std/assert where it is out of reach: what main_test.ts uses.
import { deepStrictEqual, match, ok } from "node:assert/strict";

export function assert(expr: unknown, msg?: string): asserts expr {
  ok(expr, msg);
}

export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  deepStrictEqual(actual, expected, msg);
}

export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  match(actual, expected, msg);
}

export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  ok(actual.includes(expected), msg ?? `"${actual}" lacks "${expected}"`);
}
