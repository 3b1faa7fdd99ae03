"""Local servers from which the tests download weights."""

import functools
import http.server
import threading

import pytest
from local_hub import hub, point_to_hub

__all__ = ['hub', 'point_to_hub', 'server']


@pytest.fixture
def server(tmp_path):
    """A local web server. Yields its address, its folder and the list of requested paths."""
    requested = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            if self.path == '/cut.pth':
                self.do_HEAD()
                self.wfile.write(b'PK')
            else:
                super().do_GET()

        def do_HEAD(self):
            if self.path != '/cut.pth':
                return super().do_HEAD()
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()

        def log_message(self, *args):
            pass

    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}', folder, requested
        running.shutdown()
