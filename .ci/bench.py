"""What bench.ts compares appup with: the plain http.server way of doing the same."""

import logging
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

FILE = os.environ["UP_FILE"]


class Switch(BaseHTTPRequestHandler):
    def do_GET(self):
        up = os.path.exists(FILE)
        if self.path == "/up":
            if not up:
                os.mknod(FILE, 0o644)  # nginx reads it, too
            self.answer(200, "app is up")
        elif self.path == "/down":
            if up:
                os.remove(FILE)
            self.answer(200, "app is down")
        elif self.path == "/health":
            self.answer(200 if up else 503, "app is up" if up else "app is down")
        else:
            self.answer(404, "not found")

    def answer(self, status, text):
        logging.info(text)
        self.send_response(status)  # logs the request as well
        self.send_header("Content-Type", "text/html")
        # Without a length wrk mistakes each end of an answer for an error and
        # connects once more for nothing, which would halve Python's figures.
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
HTTPServer(("", int(os.environ["UP_PORT"])), Switch).serve_forever()
