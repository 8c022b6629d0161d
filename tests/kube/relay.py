"""A relay before the API server, over plain HTTP: what the server answers to a watch from a version of long ago comes back as it is.

Kubernetes keeps a few minutes of versions, and a test cannot wait for them to pass. So the relay asks for the first version while `is_old` is
set. All else passes unchanged.
"""
import http.client, http.server, re, socket, threading


class Relay(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port, server, tls):
        super().__init__(("127.0.0.1", port), Handler)
        self.server_port_behind, self.tls = server, tls
        self.is_old, self.lock, self.open = False, threading.Lock(), set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def old(self, is_old):
        """Asks for versions of long ago from now on, or no longer; watches that are open end."""
        with self.lock:
            self.is_old = is_old
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        relay, path, is_watch = self.server, self.path, "watch=1" in self.path
        if relay.is_old and is_watch:
            path = re.sub(r"resourceVersion=\d+", "resourceVersion=1", path)
        headers = {name: self.headers[name] for name in ("authorization", "accept") if self.headers[name]}
        behind = http.client.HTTPSConnection("127.0.0.1", relay.server_port_behind, timeout=400, context=relay.tls)
        self.close_connection = True
        try:
            behind.request("GET", path, headers=headers)
            answer = behind.getresponse()
            self.send_response(answer.status)
            self.send_header("content-type", answer.getheader("content-type", "application/json"))
            self.send_header("connection", "close")
            self.end_headers()
            if is_watch:
                with relay.lock:
                    relay.open.add(self.connection)
            while data := answer.read1(65536):
                self.wfile.write(data)
        except (OSError, http.client.HTTPException):
            # An API server that is dead: the connection breaks here as it does there.
            pass
        finally:
            with relay.lock:
                relay.open.discard(self.connection)
            behind.close()
