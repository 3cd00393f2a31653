// Stands in for jsr:@std/http/status where it is out of reach: what main_test.ts
// uses, by the names that the real one makes of the same phrases.
import { STATUS_CODES } from "node:http";

type Name =
  | "OK"
  | "BadRequest"
  | "Unauthorized"
  | "Forbidden"
  | "NotFound"
  | "MethodNotAllowed"
  | "ServiceUnavailable";

export const STATUS_CODE = Object.fromEntries(
  Object.entries(STATUS_CODES).map((
    [code, phrase = ""],
  ) => [phrase.replaceAll(" ", ""), Number(code)]),
) as Record<Name, number>;
