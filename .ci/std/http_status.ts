// Stands in for jsr:@std/http/status where it is out of reach: what main_test.ts
// uses. The real one makes its names of the same phrases.
import { STATUS_CODES } from "node:http";

export const STATUS_CODE = Object.fromEntries(
  Object.entries(STATUS_CODES).map((
    [code, phrase = ""],
  ) => [phrase.replaceAll(" ", ""), Number(code)]),
);
