// Stands in for jsr:@std/http/status where it is out of reach: what main_test.ts
// uses, by the names that the real one makes of the same phrases.
import { STATUS_CODES } from "node:http";

interface StatusCode {
  OK: 200;
  BadRequest: 400;
  Unauthorized: 401;
  Forbidden: 403;
  NotFound: 404;
  MethodNotAllowed: 405;
  RequestHeaderFieldsTooLarge: 431;
  ServiceUnavailable: 503;
}

export const STATUS_CODE = Object.fromEntries(
  Object.entries(STATUS_CODES).map((
    [code, phrase = ""],
  ) => [phrase.replaceAll(" ", ""), Number(code)]),
) as unknown as StatusCode;
